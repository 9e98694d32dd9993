"""Small adapters of random parameters, and safetensors files taken apart and put together by hand."""

import json

import torch
from matrices import matrix, random_params

import spectral_adapters as sa

SHAPES = {"lora_unet_a": (24, 40), "lora_unet_b": (40, 24), "lora_unet_c": (20, 8, 3, 3), "lora_unet_d": (16, 24, 1, 1)}
METHODS = [
    ("svdiff", {}),
    ("svdiff", {"columns": "top:5@2"}),
    ("additive", {"rank": 4}),
    ("additive", {"columns": "bottom:3"}),
    ("rotation", {"rank": 5}),
    ("soda", {}),
    ("soda", {"rotation": "cayley"}),
]
PORTABLE = [(name, settings) for name, settings in METHODS if sa.method(name, **settings).portable]


def base_weight(shape, seed=0, sigma="decaying"):
    """A weight as a checkpoint has it: fp16 values, held in fp32."""
    return (3 * matrix(shape[0], torch.Size(shape[1:]).numel(), sigma, seed)).half().float().reshape(shape)


def adapter_of(name, settings, shapes=SHAPES, sigma="decaying", scale=0.05):
    """(adapter with frames as fresh from training, the weights it was made on)."""
    method = sa.method(name, **settings)
    weights = {layer: base_weight(shape, seed, sigma) for seed, (layer, shape) in enumerate(shapes.items())}
    layers = {}
    for seed, (layer, weight) in enumerate(weights.items()):
        basis = sa.decompose(weight, method.columns)
        basis = basis.half_rounded() if method.portable else basis
        params = random_params(method, weight, basis, scale, seed + 100)
        columns = None if basis.full else basis.columns
        layers[layer] = sa.AdapterLayer(layer, tuple(weight.shape), params, columns, basis)
    return sa.Adapter(method, layers), weights


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def take_apart(path):
    """(header as a dict, data block) of a safetensors file."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def put_together(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
