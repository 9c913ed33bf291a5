"""What goes into the folder that onnxruntime-genai reads."""
