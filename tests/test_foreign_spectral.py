"""Spectral files of other tools: what they do to a model, by the formulas of their papers and code, and ours too."""

import copy
import io
import json

import pytest
import torch
from adapters import relative
from safetensors.torch import save_file
from torch import nn

import spectral_adapters as sa
from spectral_adapters.__main__ import main
from spectral_adapters.spectral import names
from spectral_adapters.spectral.change import dense
from spectral_adapters.spectral.linalg import kron_factors
from spectral_adapters.spectral.open import open_source
from spectral_adapters.trainer.foreign_soda import injected

UNET = "down_blocks.1.attentions.0.transformer_blocks.0"


@pytest.fixture(scope="module")
def weights(base):
    return {name: weight.detach() for name, weight in base.weights().items()}


@pytest.fixture(autouse=True)
def _shared_bases(cache, monkeypatch):
    monkeypatch.setenv("SPECTRAL_ADAPTERS_CACHE", str(cache.folder))


def rand(*shape, scale=0.05):
    return scale * torch.randn(shape)


def attention(base):
    """{path in its part: weight} of the layers that the authors of Spectral Adapter and SODA train, per part."""
    parts = {}
    for part in base.parts()[:2]:
        modules = dict(part.module.named_modules())
        parents = ("CLIPAttention",) if part.field == "text_encoder" else ("Attention",)
        parts[part.field] = {path: modules[path].weight.detach() for path in injected(part.module, parents)}
    return parts


def layer_name(field, path):
    if field == "unet":
        return "lora_unet_" + path.replace(".", "_")
    return "lora_te_" + names.with_text_model(path).replace(".", "_")


# --- Spectral Adapter's own checkpoints: {"params": {"unet": {"<path>.spectral_A": ...}}} ---


def official(base, kind, rank=4, columns=None, stretch=0.0, embedding=True):
    """(what its code would save, {layer: weight after its own forward})."""
    params, after = {"new_concept_embedding": {}, "text_encoder": {}, "unet": {}}, {}
    if embedding:
        params["new_concept_embedding"]["<dog1>"] = torch.randn(16, 64)
    for field, layers in attention(base).items():
        for path, weight in layers.items():
            u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
            u, v, where = -u, -vh.T.contiguous(), list(columns or range(rank))  # signs as another library has them
            if kind == "additive":
                a, b, c = rand(u.shape[0], rank, scale=0.02), rand(v.shape[0], rank, scale=0.02), rand(rank) * s[where]
                left, right, middle = u.clone(), v.clone(), s.clone()
                left[:, where] += a
                right[:, where] += b
                middle[where] += c
            else:
                a, b, c = rand(rank, rank, scale=0.3), rand(rank, rank, scale=0.3), 1 + stretch * torch.randn(rank)
                turn_a, turn_b = (torch.linalg.inv(torch.eye(rank) + (x - x.T) / 2) for x in (a, b))
                left, right, middle = u.clone(), v.clone(), s.clone()
                left[:, where] = u[:, where] @ (torch.eye(rank) - (a - a.T) / 2) @ turn_a
                right[:, where] = v[:, where] @ (torch.eye(rank) - (b - b.T) / 2) @ turn_b
                middle[where] = s[where] * c
            saved = {"U": u, "S": s, "V": v, "spectral_A": a, "spectral_B": b, "spectral_C": c}
            saved |= {"original_module.weight": weight.float(), "original_module.bias": torch.zeros(len(weight))}
            spelled = path if field == "unet" else names.with_text_model(path)
            params[field] |= {f"{spelled}.{end}": nn.Parameter(t).cpu().clone() for end, t in saved.items()}
            after[layer_name(field, path)] = (left * middle) @ right.T
    return {"params": params}, after


def check_every_layer(path, weights, after, tolerance):
    source = open_source(path)
    assert source.shapes.keys() == after.keys()
    for layer, weight in weights.items():
        if layer in after:
            wanted = after[layer] - weight.float().flatten(1)
            assert relative(dense(source.change(layer, weight)), wanted) < tolerance, layer
    return source


@pytest.mark.parametrize(
    ("kind", "more", "columns", "method"),
    [
        ("additive", {}, None, "additive"),
        ("additive", {"columns": range(4, 8)}, "top:4@4", "additive"),
        ("additive", {"columns": (0, 3, 5, 9)}, "list:0,3,5,9", "additive"),
        ("rotation", {}, None, "rotation"),
        ("rotation", {"stretch": 0.2}, None, "additive"),
    ],
)
def test_official_checkpoints_do_what_their_code_does(kind, more, columns, method, base, weights, tmp_path, capsys):
    content, after = official(base, kind, **more)
    torch.save(content, tmp_path / "edlora_model-latest.pth")
    out = tmp_path / "out.safetensors"
    args = ["convert", str(tmp_path / "edlora_model-latest.pth"), str(out)]
    assert main([*args, *(["--columns", columns] if columns else [])]) == 0
    source = check_every_layer(out, weights, after, 2e-3)
    assert source.kind == method and source.adapter.method.columns.text == (columns or "top:4")
    assert source.adapter.profile == "portable" and not source.needs_weight(next(iter(source.shapes)))
    said = capsys.readouterr().out
    assert ("does not say which columns" in said) == (columns is None)
    assert ("also changed the singular values" in said) == (method != kind) and "<dog1>" in said
    assert out.stat().st_size < (tmp_path / "edlora_model-latest.pth").stat().st_size / 3
    # The base is named by its weights, and the file's own frames are used.
    assert all(layer.evidence.fingerprint for layer in source.adapter.layers.values())


def test_in_fp32_and_as_a_lora_they_are_exact(base, weights, tmp_path):
    content, after = official(base, "additive")
    torch.save(content, tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "--dtype", "fp32", str(tmp_path / "fp32.safetensors")]) == 0
    check_every_layer(tmp_path / "fp32.safetensors", weights, after, 1e-3)
    for to in ("lora", "diff"):
        assert main(["convert", str(tmp_path / "a.pth"), "--to", to, str(tmp_path / f"{to}.safetensors")]) == 0
        check_every_layer(tmp_path / f"{to}.safetensors", weights, after, 1.5e-3)


def test_torchs_old_form_of_pickles_is_read_too(base, weights, tmp_path):
    content, after = official(base, "rotation", embedding=False)
    torch.save(content["params"], tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "a.safetensors")]) == 0
    check_every_layer(tmp_path / "a.safetensors", weights, after, 1e-3)


def spoiled(change, base):
    content, _ = official(base, "additive")
    table = content["params"]["unet"]
    key = next(key for key in table if key.endswith("spectral_A")).removesuffix("spectral_A")
    change(table, key)
    return content


SPOILS = {
    "no C": (lambda t, key: t.pop(f"{key}spectral_C"), "spectral_C"),
    "NaN": (lambda t, key: t[f"{key}spectral_B"].fill_(torch.nan), "NaN"),
    "another rank": (lambda t, key: t.update({f"{key}spectral_A": torch.zeros(3, 7)}), "rank 4"),
    "another width": (lambda t, key: t.update({f"{key}V": torch.zeros(3, 3)}), "rank 4"),
    "a zero moved": (lambda t, key: t[f"{key}S"].zero_(), "singular value of 0"),
}


@pytest.mark.parametrize("case", SPOILS)
def test_damaged_checkpoints_are_refused(case, base, tmp_path, capsys):
    change, said = SPOILS[case]
    torch.save(spoiled(change, base), tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "out.safetensors")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_columns_must_be_as_many_as_the_rank(base, tmp_path, capsys):
    torch.save(official(base, "additive")[0], tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), "--columns", "top:3", str(tmp_path / "b.safetensors")]) == 2
    assert "3 columns" in capsys.readouterr().err


def test_pickles_run_nothing_and_others_are_named(tmp_path, capsys):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    old = io.BytesIO()
    torch.save({"params": {"unet": Bomb()}}, old, _use_new_zipfile_serialization=False)
    torch.save({"params": {"unet": Bomb()}}, tmp_path / "zip.pt")
    (tmp_path / "old.pt").write_bytes(old.getvalue())
    (tmp_path / "text.pt").write_text("no pickle")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"state_dict": {}, "optimizer": 1}, tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("zip", "old", "text", "empty", "other", "list", "missing"):
        assert main(["convert", str(tmp_path / f"{name}.pt"), str(tmp_path / "out.safetensors")]) == 2
        assert f"{name}.pt" in capsys.readouterr().err
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()


# --- svdiff-pytorch: {"<path>.delta": (k,)} ---


def shifts(base, field, scale=0.3):
    """(what svdiff-pytorch saves for one part, {layer: weight after its forward})."""
    part = next(part for part in base.parts() if part.field == field)
    saved, after = {}, {}
    for path, module in part.module.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or not isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm | nn.Embedding):
            continue
        row = weight.detach().half().float()
        matrix = row[None] if row.ndim == 1 else row.flatten(1)
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        delta = scale * torch.randn(len(s)) * s
        spelled = path if field == "unet" else names.with_text_model(path)
        saved[f"{spelled}.delta"] = delta
        if not isinstance(module, nn.Embedding):
            after[layer_name(field, path)] = ((u * (s + delta).relu()) @ vh).reshape(weight.shape)
    return saved, after


def test_shifts_of_svdiff_pytorch(base, weights, tmp_path, capsys):
    (unet, after), (text, more) = shifts(base, "unet"), shifts(base, "text_encoder")
    save_file(unet, tmp_path / "spectral_shifts.safetensors")
    save_file(text, tmp_path / "spectral_shifts_te.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path), str(out)]) == 2  # says that it needs the base
    assert "--base" in capsys.readouterr().err
    assert main(["convert", str(tmp_path), str(out), "--base", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "token_embedding.delta" in said and "position_embedding.delta" in said
    adapter = sa.load(out)
    assert (adapter.method.name, adapter.profile, adapter.base_name) == ("svdiff", "compact", base.name)
    assert adapter.layers.keys() | adapter.gains.keys() == (after | more).keys()
    for layer, wanted in (after | more).items():
        weight = weights[layer]
        assert relative(adapter.delta(layer, weight), wanted - weight.half().float()) < 2e-3, layer
    report = sa.check_layers(adapter, weights)
    assert report.error is not None and report.error < 1e-3 and report.same == len(adapter.layers)


def test_one_file_of_shifts_alone_and_as_a_difference(base, weights, tmp_path):
    saved, after = shifts(base, "unet")
    save_file(saved, tmp_path / "any_name.safetensors")
    out = tmp_path / "diff.safetensors"
    args = ["convert", str(tmp_path / "any_name.safetensors"), "--to", "diff", "--base", "tiny", str(out)]
    assert main(args) == 0
    source = open_source(out)
    assert source.shapes.keys() | source.gains.keys() == after.keys()
    layer = next(iter(source.shapes))
    wanted = after[layer] - weights[layer].half().float()
    assert relative(dense(source.change(layer)), wanted.flatten(1)) < 2e-3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_in.delta": torch.zeros(3)}, "3"),
        ({"conv_norm_out.delta": torch.zeros(4)}, "one"),
        ({"down_blocks.9.nothing.delta": torch.zeros(3)}, "no layer"),
        ({"conv_in.delta": torch.full((4,), torch.inf)}, "infinity"),
    ],
)
def test_shifts_of_another_base_are_refused(change, said, base, tmp_path, capsys):
    save_file(shifts(base, "unet")[0] | change, tmp_path / "spectral_shifts.safetensors")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path), str(out), "--base", "tiny"]) == 2
    assert said in capsys.readouterr().err and not out.exists()


def test_shifts_are_not_opened_as_weight_changes(base, tmp_path):
    save_file({"conv_in.delta": torch.zeros(4)}, tmp_path / "spectral_shifts.safetensors")
    with pytest.raises(sa.AdapterFileError, match="convert"):
        open_source(tmp_path / "spectral_shifts.safetensors")


# --- SODA: {"unet": [[K1], [K2], [K3], [delta], ...]} ---


def turned(size):
    noise = rand(size, size)
    return torch.matrix_exp(noise - noise.T)


def soda(base, factors):
    """(what SODA's script saves, {layer: weight after its forward}), in the order of the modules."""
    table, after = {"unet": [], "text_encoder_one": [], "text_encoder_two": []}, {}
    for field, layers in attention(base).items():
        for path, weight in layers.items():
            row = weight.half().float()
            u, s, vh = torch.linalg.svd(row, full_matrices=False)
            turns, delta = [turned(d) for d in factors(row.shape[1])], rand(len(s)) * s
            rotation = torch.kron(torch.kron(turns[0], turns[1]), turns[2])
            after[layer_name(field, path)] = (u * (s + delta).relu()) @ vh @ rotation.T
            # As the script saves them: every parameter in a list of its own.
            target = "unet" if field == "unet" else "text_encoder_one"
            table[target] += [[nn.Parameter(t)] for t in (*turns, delta)]
    return table, after


def other_factors(n):
    return (1, *sorted(kron_factors(n))[:1], n // min(kron_factors(n)))


def test_soda_lists_in_the_order_of_their_injector(base, weights, tmp_path, capsys):
    table, after = soda(base, kron_factors)
    torch.save(table, tmp_path / "peft_1000.pt")
    for to in ("native", "diff"):
        out = tmp_path / f"{to}.safetensors"
        assert main(["convert", str(tmp_path / "peft_1000.pt"), "--to", to, "--base", "tiny", str(out)]) == 0
        check_every_layer(out, {k: w.half().float() for k, w in weights.items()}, after, 2e-3)
    adapter = sa.load(tmp_path / "native.safetensors")
    assert (adapter.method.name, adapter.profile) == ("soda", "compact")
    assert sa.check_layers(adapter, weights).error < 1e-3
    assert "order of its own injector" in capsys.readouterr().out


def test_soda_lists_of_other_sizes_are_no_adapters_but_differences(base, weights, tmp_path, capsys):
    table, after = soda(base, other_factors)
    torch.save(table, tmp_path / "a.pt")
    args = ["convert", str(tmp_path / "a.pt"), "--base", "tiny"]
    assert main([*args, str(tmp_path / "native.safetensors")]) == 2
    assert "--to diff" in capsys.readouterr().err
    assert main([*args, "--to", "diff", str(tmp_path / "diff.safetensors")]) == 0
    rounded = {k: w.half().float() for k, w in weights.items()}
    check_every_layer(tmp_path / "diff.safetensors", rounded, after, 2e-3)
    assert main([*args, "--to", "lora", "--energy", "0.9", str(tmp_path / "lora.safetensors")]) == 0
    check_every_layer(tmp_path / "lora.safetensors", rounded, after, 0.33)  # sqrt(1 - 0.9), and fp16


def test_soda_lists_of_another_model_are_refused(base, tmp_path, capsys):
    table, _ = soda(base, kron_factors)
    for change, said in (
        (lambda t: t["unet"].pop(), "tensors"),
        (lambda t: t["unet"].__setitem__(3, [torch.zeros(5)]), "shifts"),
        (lambda t: t["unet"][0][0].data.fill_(torch.nan), "NaN"),
        (lambda t: t["text_encoder_two"].append([torch.zeros(1)]), "text_encoder_two"),
    ):
        spoilt = copy.deepcopy(table)
        change(spoilt)
        torch.save(spoilt, tmp_path / "a.pt")
        assert main(["convert", str(tmp_path / "a.pt"), "--base", "tiny", str(tmp_path / "out.safetensors")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_the_order_of_sodas_injector_in_diffusers_and_transformers(base):
    """What docs/conversion.md says: down, up, then mid; q, k, v, out in the UNet, k, v, q, out in CLIP."""
    paths = list(attention(base)["unet"])
    blocks = [path.split(".")[0] for path in paths]
    assert list(dict.fromkeys(blocks)) == ["down_blocks", "up_blocks", "mid_block"]
    assert [path.rsplit("attn1.", 1)[-1] for path in paths[:4]] == ["to_q", "to_k", "to_v", "to_out.0"]
    text = [path.rsplit(".", 1)[1] for path in list(attention(base)["text_encoder"])[:4]]
    assert text == ["k_proj", "v_proj", "q_proj", "out_proj"]


# --- The command on files that need no import ---


def test_convert_a_lora_to_a_smaller_one(tmp_path, capsys):
    up, down = torch.randn(64, 16), torch.randn(16, 64) * torch.logspace(0, -3, 16)[:, None]
    save_file(
        {"unet.mid_block.x.lora_B.weight": up, "unet.mid_block.x.lora_A.weight": down}, tmp_path / "a.safetensors"
    )
    file = str(tmp_path / "a.safetensors")
    for name, wish, limit in (("rank", ("--rank", "4"), 0.2), ("energy", ("--energy", "0.99"), 0.101)):
        assert main(["convert", file, "--to", "lora", str(tmp_path / f"{name}.safetensors"), *wish]) == 0
        made = open_source(tmp_path / f"{name}.safetensors")
        assert relative(dense(made.change("lora_unet_mid_block_x")), up @ down) < limit
    assert "residual" in capsys.readouterr().out
    other = str(tmp_path / "b.safetensors")
    assert main(["convert", file, other]) == 2
    assert "extract" in capsys.readouterr().err
    for wish in (("--rank", "0"), ("--energy", "1.5")):
        assert main(["convert", file, "--to", "lora", other, *wish]) == 2
        assert "expected" in capsys.readouterr().err


def test_peft_settings_do_not_stay_with_another_rank(tmp_path):
    path, config = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", {"unet.r": 8, "unet.lora_alpha": 4}
    tensors = {f"{path}.lora_A.weight": torch.randn(8, 1280), f"{path}.lora_B.weight": torch.randn(1280, 8)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    args = ["convert", str(tmp_path / "a.safetensors"), "--to", "lora", str(tmp_path / "b.safetensors")]
    assert main(args) == 0
    before, after = open_source(tmp_path / "a.safetensors"), open_source(tmp_path / "b.safetensors")
    assert "lora_adapter_metadata" not in after.metadata
    (layer,) = after.shapes
    assert relative(dense(after.change(layer)), dense(before.change(layer))) < 1e-3


def test_the_command_edit(tmp_path, capsys):
    save_file({"lora_unet_x.diff": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    file = str(tmp_path / "a.safetensors")
    assert main(["edit", file, "--title", "Cat", "--trigger-words", "sks, cat", "--licence", "CC0-1.0"]) == 0
    assert main(["info", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert (facts["title"], facts["trigger_words"], facts["licence"]) == ("Cat", ["sks", "cat"], "CC0-1.0")
    assert main(["edit", file]) == 2 and main(["edit", file, "--preview", str(tmp_path / "no.png")]) == 2
    assert main(["edit", file, "--title", ""]) == 0
