"""checkpoint.pth, calibrations and states to resume from: tensors of the right shape, or one line."""
import copy
import io
import pickle
import types

import pytest
import torch
from fuzz.damage import damaged
from fuzz.endings import ends_well, share
from hypothesis import given
from hypothesis import strategies as st

from exp.laws import load as load_calibration
from exp.laws import save as save_calibration
from exp.settings import Settings
from exp.train.trainer import COUNTERS, RESUME, Trainer
from models import timer_xl
from models.config import ModelConfig
from models.registry import load
from utils.calibration import fit_law


def written(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def nested(value):
    return torch.nested.nested_tensor([value, value])


# a tensor -> something that is saved like one, but is none that this program has a use for
SWAPS = {
    "double": lambda value: value.double(), "half": lambda value: value.half(), "bfloat16": lambda v: v.bfloat16(),
    "int": lambda value: value.int(), "complex": lambda value: value.to(torch.complex64), "bool": lambda v: v > 0,
    "8 bit": lambda value: value.to(torch.float8_e4m3fn), "sparse": lambda value: value.to_sparse(),
    "csr": lambda value: value.to_sparse_csr() if value.dim() == 2 else value.to_sparse(), "nested": nested,
    "jagged": lambda value: torch.nested.nested_tensor([value, value], layout=torch.jagged),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "meta": lambda v: v.to("meta"),
    "transposed": lambda value: value.mT if value.dim() > 1 else value[None], "empty": lambda value: value[:0],
    "scalar": lambda value: value.sum(), "expanded": lambda value: value.sum().expand(value.shape),
    "strided": lambda value: torch.stack([value, value], dim=-1)[..., 0], "NaN": lambda value: value * float("nan"),
    "infinite": lambda value: value + float("inf"), "huge": lambda value: value.double() * 1e300,
    "gradient": lambda value: value.clone().requires_grad_(), "parameter": lambda value: torch.nn.Parameter(value),
    "list": lambda value: value.tolist(), "None": lambda value: None, "text": lambda value: "weights",
    "dictionary": lambda value: {"a": value}, "array": lambda value: value.detach().numpy(), "size": lambda v: v.shape}


@st.composite
def states(draw, state: dict) -> object:
    """A state dict with swapped values, lost and further keys, in a wrapper, or something else altogether."""
    state = dict(state)
    for key in draw(st.lists(st.sampled_from(sorted(state)), max_size=2)):
        state[key] = SWAPS[draw(st.sampled_from(sorted(SWAPS)))](state[key]) if isinstance(
            state[key], torch.Tensor) and not state[key].is_meta and state[key].layout == torch.strided and not \
            state[key].is_nested and state[key].dtype == torch.float32 else state[key]
    for key in draw(st.sets(st.sampled_from(sorted(state)), max_size=1)):
        del state[key]
    for key in draw(st.lists(st.sampled_from(["module.x", "", "state_dict", "model", 3, None, ("a",)]), max_size=1)):
        state[key] = draw(st.sampled_from([torch.zeros(1), {}, {"a": torch.zeros(1)}, None, "x"]))
    wrap = draw(st.sampled_from([lambda s: s] * 5 + [
        lambda s: {"state_dict": s}, lambda s: {"model": {"module." + str(k): v for k, v in s.items()}}, lambda s: [s],
        lambda s: {"model": {"model": s}}, lambda s: None, lambda s: {}, lambda s: {"model": None},
        lambda s: torch.nn.Linear(2, 2), lambda s: torch.zeros(3), lambda s: {"epoch": 3, "state_dict": s}]))
    return wrap(state)


@st.composite
def files(draw, content: bytes) -> bytes:
    """The file damaged, or one that another program would write under this name."""
    foreign = [b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), pickle.dumps({"a": 1}), pickle.dumps([1]), b"\x80\x04.",
               b"\x80\x02}q\x00.", bytes(1000), written({})[:-1], b"version https://git-lfs", b"GIF89a", b"{}"]
    return draw(st.sampled_from(foreign)) if draw(st.integers(0, 5)) == 0 else draw(damaged(content))


def check_checkpoint(path, content):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        model = ends_well(lambda: load(path))
    finally:
        path.write_bytes(before)
    if model is not None:
        assert all(value.dtype == torch.float32 for value in model.parameters())
        with torch.no_grad():
            model(torch.zeros(1, 24, 2))
    return model


@share(7)
@given(st.sampled_from(["target", "draft"]), st.data())
def test_a_damaged_checkpoint(given_models, which, data):
    path = given_models / which / "checkpoint.pth"
    whole = load(path).state_dict()
    model = check_checkpoint(path, data.draw(files(path.read_bytes())))
    if model is not None:  # where the damage does not matter: in the padding
        assert all(torch.equal(value, whole[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [b"archive/data/0", b"archive/args.json"])
def test_bits_of_the_directory_of_a_checkpoint(given_models, name):
    """Found: one that makes torch read a tensor as empty, and some that no reader of zip files expects."""
    path = given_models / "target" / "checkpoint.pth"
    content, whole = path.read_bytes(), load(path).state_dict()
    start = content.rindex(name) - 46  # of the entry in the directory at the end
    assert content[start:start + 4] == b"PK\x01\x02"
    for at in (6, 7, 8, 9, 10, 11, 38, 39, 40, 41, 46):  # version, flags, method, attributes, name
        for bit in range(8):
            damage = content[:start + at] + bytes([content[start + at] ^ 1 << bit]) + content[start + at + 1:]
            model = check_checkpoint(path, damage)
            assert model is None or all(torch.equal(value, whole[key]) for key, value in model.state_dict().items())


@share(7)
@given(st.sampled_from(["target", "draft"]), st.data())
def test_a_checkpoint_of_other_things(given_models, which, data):
    path = given_models / which / "checkpoint.pth"
    check_checkpoint(path, written(data.draw(states(torch.load(path, weights_only=True)))))


MADE_FOR = {"form": 3, "weights": "w", "data": "d", "windows": "W", "context": 48, "patch": 4, "covariance": "diag",
            "rolling": "window"}


@share(5)
@given(st.booleans(), st.data())
def test_a_calibration(given_models, full, data):
    path, made_for = given_models / "law.pth", MADE_FOR | {"covariance": "full" if full else "diag"}
    residuals = torch.randn(80, 4, 2, generator=torch.Generator().manual_seed(0))
    save_calibration(path, fit_law(residuals, 1, full), made_for)
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(files(path.read_bytes())))
    else:
        content = torch.load(path, weights_only=True)
        part = data.draw(st.sampled_from(["identity", "held_out", "factor", "widths"]))
        content[part] = data.draw(odd_values(content[part]))
        path.write_bytes(written(content))
    law = ends_well(lambda: load_calibration(path, made_for, 4, 2))
    if law is not None:
        assert torch.isfinite(law.law.factor).all() and (law.law.widths > 0).all() and "cover" in law.describe()


@st.composite
def odd_values(draw, value):
    """Another value in its place, or in one of its places."""
    other = draw(st.sampled_from([None, "x", -1, 2.5, float("nan"), 10**30, [], {}, True, torch.zeros(2), (1,)]))
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and draw(st.booleans()):
        return SWAPS[draw(st.sampled_from(sorted(SWAPS)))](value)
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        return value | {key: draw(odd_values(value[key]))}
    return other


class Sampler:
    batches_per_epoch = 3


def trainer(folder):
    """One that has done nothing yet."""
    loader = types.SimpleNamespace(batch_sampler=Sampler())
    torch.manual_seed(0)
    model = timer_xl.Model(ModelConfig(input_token_len=12, d_model=8, n_heads=2, d_ff=8, e_layers=1))
    settings = Settings().with_("run", resume=True, quiet=True).with_("train", ema=0.9)
    return Trainer(model, None, loader, None, settings, folder, {"seed": 1}, torch.device("cpu"))


@pytest.fixture(scope="module")
def resume_state(tmp_path_factory):
    """What a training leaves, after one step."""
    folder = tmp_path_factory.mktemp("resume")
    one = trainer(folder)
    one.model(torch.zeros(1, 24, 1)).sum().backward()
    one.optimizer.step()
    one.step = one.batch = 1
    one.best = 0.5
    one._save_resume()
    return folder / RESUME


@share(5)
@given(st.data())
def test_a_state_to_resume_from(resume_state, data):
    before = resume_state.read_bytes()
    if data.draw(st.booleans()):
        content = data.draw(files(before))
    else:
        state = torch.load(resume_state, weights_only=True)
        part = data.draw(st.sampled_from(sorted(state)))
        state[part] = data.draw(odd_values(copy.copy(state[part])))
        content = written(state)
    resume_state.write_bytes(content)
    try:
        one = trainer(resume_state.parent)
        rng = torch.get_rng_state()
        if ends_well(lambda: one._restore() or "restored"):
            for name, kind in COUNTERS.items():
                assert isinstance(getattr(one, name), kind)
            one.optimizer.zero_grad()
            one.model(torch.zeros(1, 24, 1)).sum().backward()
            one.optimizer.step()
            one.average.update_parameters(one.model)
    finally:
        torch.set_rng_state(rng)
        resume_state.write_bytes(before)
