"""Formats of files that a student is exported to, and what they are held against.

| module | what it holds |
|---|---|
| `card` | What is said of an export: lines for a terminal, and the card beside the file. |
| `exported` | Folders that `limbeck export` made: `export.json` says by what they are run. |
| `format` | What a format is: how a student is written as a file, and how that file is run without limbeck. |
| `gguf` | GGUF, the file of llama.cpp, for decoder families that transformers' own reader of it knows. |
| `int8` | Layers of whole numbers: what a file of ONNX multiplies, in torch and as operators of ONNX. |
| `known` | The formats that there are. |
| `memory` | The model in memory that a file is held against: a student whose layers are stored and multiplied as the file has them, and how it answers. |
| `onnx` | ONNX, in fp32 and with int8 weights and activations: written by torch.onnx, run by onnxruntime. |
| `torchao` | torchao: the weights as whole numbers in a folder that transformers reads, with torchao and without limbeck. |
"""
