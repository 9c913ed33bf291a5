"""Stream a story from a converted folder: python scripts/tell_story.py FOLDER [PROMPT]."""

import sys

import onnxruntime_genai as og


def main(folder: str, prompt: str = "Once upon a time") -> None:
    """Print what the model makes of `prompt`, token by token, until it stops."""
    model = og.Model(folder)
    tokenizer = og.Tokenizer(model)
    stream = tokenizer.create_stream()
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=300)
    generator = og.Generator(model, parameters)
    generator.append_tokens([tokenizer.bos_token_id, *tokenizer.encode(prompt)])
    print(prompt, end="", flush=True)
    while not generator.is_done():
        generator.generate_next_token()
        print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
