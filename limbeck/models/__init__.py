"""Hugging Face models: taps, students, surgery.

| module | what it holds |
|---|---|
| `attention` | The attention function that limbeck registers with transformers: a fast kernel that can be listened to. |
| `compressed` | What a compressed student says of its weights, in two files beside them: which lie on a grid, are a product of two, or were pruned. |
| `exits` | Early exits: heads behind inner layers, so that a model can answer before its last layer. |
| `fingerprint` | The hash of weights. |
| `flops` | What a forward pass of a model multiplies, counted on the meta device: no memory, no weights; a shape is counted once. |
| `inherit` | A student begins with the weights of a larger model of its family: layers are chosen, widths are cut. |
| `int8` | A teacher whose linear layers hold int8 weights, through torchao, and what that does to its predictions. |
| `kept_units` | Which units a narrower model keeps of a wider one: those with the largest weights. |
| `layer_maps` | Layer maps: which teacher layer each student layer learns from. Pure integers, counted from 1. |
| `pretrained` | Where pretrained models and tokenizers come from: a folder, the Hub at a pinned revision, or the embedded teacher. |
| `readouts` | A readout taken apart into tensors that can be kept, and put together again. |
| `students` | Students: from a shape in a recipe to a random model. |
| `taps` | Taps: a model's answer to a batch as named tensors, without slowing the model down. |
| `changes/` | What is done to a model beside its training, as values: quantised, pruned, factorised. The mathematics is pure and importable. |
"""
