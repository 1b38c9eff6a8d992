"""args.json: a model, or one line that names the file."""
import json

import torch
from fuzz.damage import JSON, damaged
from fuzz.endings import ends_well, share
from helpers import save_small
from hypothesis import given
from hypothesis import strategies as st

from exp.options import settled
from exp.ownership import OWNER, results_folder, training_folder
from exp.predict import Forecaster
from models.registry import load

NAMES = ["model", "d_model", "n_heads", "d_ff", "e_layers", "input_token_len", "use_norm", "norm_mode", "norm_window",
         "dropout", "activation", "covariate", "flash_attention", "draft_stochastic", "draft_patches",
         "draft_scale_d_model", "draft_scale_n_heads", "draft_scale_d_ff", "draft_scale_e_layers", "seq_len", "data",
         "data_path", "seed", "new"]


def check(folder, which, content):
    """By every door: the library's, the notebook's and the command line's."""
    path = folder / which / "args.json"
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        model = ends_well(lambda: load(folder / which))
        if model is not None:
            with torch.no_grad():
                assert model(torch.zeros(1, 2 * model.patch_len, 2)) is not None
        ends_well(lambda: Forecaster.load(folder / which, quiet=True))
        ends_well(lambda: settled({"is_training": 0, "checkpoints": str(folder), "test_dir": which,
                                   "model": "timer_xl_draft" if which == "draft" else "timer_xl"}))
    finally:
        path.write_bytes(before)


@share(4)
@given(st.sampled_from(["target", "draft"]), st.data())
def test_damaged_bytes(given_models, which, data):
    check(given_models, which, data.draw(damaged((given_models / which / "args.json").read_bytes())))


@share(8)
@given(st.sampled_from(["target", "draft"]), st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3),
       st.sets(st.sampled_from(NAMES), max_size=2))
def test_other_values_and_missing_ones(given_models, which, changes, lost):
    content = json.loads((given_models / which / "args.json").read_text()) | changes
    sizes = ("d_model", "d_ff", "e_layers", "n_heads", "input_token_len", "draft_patches")
    if any(isinstance(content.get(name), int) and content[name] > 64 for name in sizes):
        return  # a limit of memory, not of this test
    check(given_models, which, json.dumps({key: content[key] for key in content if key not in lost}).encode())


SOURCE = st.fixed_dictionaries({"path": JSON, "sha256": JSON}) | JSON
STORED = ["sources", "seed", "spec_tol", "processes", "test_pred_len"]
OWNERS = st.dictionaries(st.sampled_from(STORED), JSON, max_size=2)
NOW = {"seed": 1, "spec_tol": 0.1, "test_pred_len": 12, "sources": {"data_path": {"path": "a.csv", "sha256": "0"}}}


@share(5)
@given(OWNERS, st.none() | st.dictionaries(st.sampled_from(["data_path", "x"]), SOURCE, max_size=2), st.booleans())
def test_who_a_folder_belongs_to(tmp_path_factory, owner, files, results):
    """args.json of a trained folder, and settings.json of a folder of results."""
    folder = tmp_path_factory.mktemp("owned")
    if files is not None:
        owner = owner | {"sources": files}
    if results:
        (folder / OWNER).write_text(json.dumps(owner))
    else:
        save_small(folder)
        stored = json.loads((folder / "args.json").read_text())
        (folder / "args.json").write_text(json.dumps(stored | owner))

    def hold():
        with results_folder(folder, NOW) if results else training_folder(folder, NOW):
            return "held"
    ends_well(hold)
