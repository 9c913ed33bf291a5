"""Texts that tokenizers read differently, by the kind of what is hard about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

_PROSE = (
    "Once upon a time, there was a small fox.",
    "It's what they'd said; we'll see if I'm right, she's late and you've won.",
    "IT'S WHAT THEY'D SAID; WE'LL SEE.",
    "The quick brown fox jumps over the lazy dog. The end!",
    "Dr. Smith (born 1912) wrote: “No — not yet…” and left.",
    "e.g. state-of-the-art, A/B, and/or, x_y, CamelCase, snake_case, kebab-case",
    "In 2024, 3.5 million people paid $1,234.56 (or €99) at 10:45.",
    "What?! Really... yes?? NO!!! ok;) :-) <3 ---- **** ____ ==== ~~~~",
    "a", "I", "Hello", "hello world", " leading", "trailing ", "Hello, World!", "don't", "'tis",
    "un peu plus tard, il s'arrêta à l'hôtel", "Straße, Größe, Übermut", "¿Qué? ¡Sí, señor!",
    "Zażółć gęślą jaźń", "İstanbul ıssız", "Đặng Văn", "naïve café façade", "smørrebrød på øya",
)  # fmt: skip
_NUMBERS = (
    "0", "7", "42", "123", "1234", "12345", "123456", "1234567890123", "3.14159", "1,000,000",
    "-5", "+49 30 123456", "1e-6", "0x1F", "10%", "1st 2nd 3rd", "v1.2.3", "2024-11-28T08:41:20Z",
    "x=1;y=22;z=333", "٣٤٥", "१२३", "½ ⅔ ²³", "Ⅳ ⅻ", "①②③", "一二三", "1 2 3 4 5", "12 345 678",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x**2  # square\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    "if __name__ == '__main__':\n    main()\n",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    "<div class=\"x\">a &amp; b</div>\n<!-- c -->",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x';",
    "https://example.org/a/b?c=d&e=%20f#g", "user.name+tag@example.co.uk",
    "C:\\Users\\me\\file.txt", "$ pip install 'x[y]' && echo $HOME | grep -v \"a\"",
    "\\frac{a}{b} + \\sum_{i=0}^{n} x_i", "# Title\n\n- one\n- two\n\n```py\nx\n```\n",
    "if (a) {\n\t\n\t\tb();\n}\n", "def f():\n    x = 1\n    \n    return x\n",
    "a = 1; \n    b = 2\n", "}\n//c", "};\n\n/* c */\n#b", "\t\t}\n\t}\n}\n",
    "x = [\n  1,\n\n  2,\n ]",
    "a->b::c", "x&&y||!z", "!=", "==", "=>", "...", "/* c */", "//", "##", "@a", "#b", "^_^",
)  # fmt: skip
_BLANKS = (
    " ", "  ", "   ", "        ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", "a\r\nb", "a\rb",
    "a\nb", "a\n\nb", "a \nb", "a\n b", "a\n  b", "a  b", "a   b", "a    b", "a\tb", "a\t b",
    " a", "  a", "   a", "a ", "a  ", "a\n", "a\n\n", "\na", "\n\na", "\n a", " \na", " \n a",
    "a \n \n b", "\t\n\t\n", "    x\n        y\n", "1 \n 2", "a.\n\nB", "a. \n B", "?\n", "!\n\n",
    "a\u00a0b", "a\u3000b", "a\u2003b", "a\u2028b", "a\u0085b", "a\x0bb", "a\x0cb",
)  # fmt: skip
_SCRIPTS = (
    "你好，世界！", "今天天气很好，我们去公园吧。", "中文English混排123测试", "繁體中文測試",
    "こんにちは世界。カタカナ、ひらがな", "東京は2024年に", "안녕하세요 세계", "한국어 텍스트 123",
    "Привет, мир! Как дела?", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "نص عربي ١٢٣",
    "नमस्ते दुनिया", "হ্যালো বিশ্ব", "வணக்கம்", "สวัสดีชาวโลก", "ຂ້ອຍ", "ជំរាបសួរ", "မင်္ဂလာပါ",
    "გამარჯობა", "Բարեւ", "አማርኛ", "ᐃᓄᒃᑎᑐᑦ", "𐌰𐌱𐌲", "𝓗𝓮𝓵𝓵𝓸", "你好 世界", "。，！？；：",
)  # fmt: skip
_SYMBOLS = (
    "🙂", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "a🙂b", "🙂🙂 🙂", "♥ ★ ☃ ✓", "→ ⇒ ↔", "∀x∈ℝ: √x ≥ 0",
    "€ £ ¥ ₹ ₿", "© ® ™ § ¶", "“a” ‘b’ «c» „d“", "– — ―", "… ‥", "° ′ ″", "±×÷≠≤≥", "│┌─┐█▓",
    "\u200b", "a\u200bb", "\ufeffa", "a\u200db", "a\ufe0fb", "\u202eabc", "a\u00adb", "\x01\x02",
    "\x1b[31mred\x1b[0m", "\x7f", "\ufffd", "\ue000", "\U0010fffd", "▁", "a▁b", "▁▁a", "Ġ", "Ċ",
)  # fmt: skip
_COMPOSED = ("e\u0301", "cafe\u0301 noir", "n\u0303 a\u030a", "\u1112\u1161\u11ab", "o\u0302\u0323")
_COMPATIBLE = ("ﬁn", "Ｆｕｌｌ　ｗｉｄｔｈ １２３", "ｶﾀｶﾅ", "㎏ ㍿", "ℌ ℵ", "x² ™")
_MIXED_CASES = ("ABC abc Abc aBC", "ẞ ß SS", "Ǆ ǅ ǆ", "ΣΑΣ σας ς", "NASA iPhone McDonald's")

_FIXED: Mapping[str, Sequence[str]] = {
    "prose": _PROSE,
    "numbers": _NUMBERS,
    "code": _CODE,
    "blanks": _BLANKS,
    "scripts": _SCRIPTS,
    "symbols": _SYMBOLS,
    "decomposed letters": _COMPOSED,
    "compatibility letters": _COMPATIBLE,
    "capitals": _MIXED_CASES,
}
_AROUND = ("{}", "a{}b", "a {} b", " {} ", "\n{}\n", "{}{}", "a  {}  b", "{} a", "1{}2", "_{}_")
_MOST_TOKENS = 8
"""Added tokens that are tried: beyond these, more of them would show the same."""


def hard_texts(added_tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Kind and text of each; `added_tokens` are tried alone and with all kinds of neighbours."""
    for kind, texts in _FIXED.items():
        yield from ((kind, text) for text in texts)
    yield from (("long texts", text) for text in _long_texts())
    step = max(1, len(added_tokens) // _MOST_TOKENS)
    for token in added_tokens[::step][:_MOST_TOKENS]:
        yield from (("added tokens", form.replace("{}", token)) for form in _AROUND)


def _long_texts() -> Iterator[str]:
    yield " ".join(_PROSE)
    yield "\n".join(_PROSE)
    yield "\n\n".join(_CODE)
    yield "".join(_NUMBERS)
    yield " ".join(_NUMBERS)
    yield "".join(_SCRIPTS)
    yield " ".join(_SYMBOLS)
    yield "天地玄黃，宇宙洪荒；日月盈昃，辰宿列張。" * 12
    yield "x" * 300
    yield "ab " * 100
    yield " " * 70 + "end"
    yield "-" * 90
    yield "9" * 60
