"""Our models for other programs: a folder of transformers, an ONNX file, a program of torch.export."""
