"""Settings, the digest of a column's spec, and what a command says when they are wrong."""

import json
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag

from store import (
    ColumnSpec,
    DamagedError,
    Feature,
    Settings,
    Storage,
    UserError,
    canonical_json,
    create_column,
    list_columns,
    load_settings,
    open_column,
)
from trainer.settings import TrainConfig


class Stage(Settings):
    elsewhere = {"learning_rate": "lr"}  # noqa: RUF012
    lr: float = 1e-3
    steps: int = Field(10, gt=0)


class Phase(Settings):
    lr: float


class Other(Settings):
    kind: str
    size: int = 0


class Run(Settings):
    name: str
    part: Annotated[
        Annotated[Phase, Tag("a")] | Annotated[Other, Tag("b")], Discriminator(lambda data: data["kind"])
    ] = Other(kind="b")
    phase: Literal["mat", "pt1"] | Annotated[tuple[Phase, ...], Field(min_length=1)] = "mat"
    shares: dict[Literal["visual", "audio"], int] = {}  # noqa: RUF012
    stages: tuple[Stage, ...] = ()
    optim: Stage = Stage()


@pytest.fixture
def load(tmp_path):
    def loader(text, *overrides):
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_settings(Run, path, overrides)

    return loader


GOOD = "name: a\nstages: [{lr: 1e-4}, {steps: 3}]\n"


def test_values_and_overrides(load):
    """Overrides reach nested fields and list items and keep the rest; else a sweep trains another model."""
    run = load(GOOD, "name=b", "stages.1.steps=5", "stages.0.lr=0.5", "optim.lr=2e-5")
    expected = (Stage(lr=0.5), Stage(steps=5))
    assert run == Run(name="b", stages=expected, optim=Stage(lr=2e-5))
    assert load(GOOD + "optim: null", "optim.lr=2e-5").optim == Stage(lr=2e-5), "what is left empty can be filled"
    assert load(GOOD).stages[0].lr == 1e-4


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        (
            "name: a\nnmae: b",
            (),
            ["run.yaml", "'nmae'; did you mean 'name'?", "accepted: name, optim, part, phase, shares, stages"],
        ),
        ("name: a\nfarbe: b", (), ["unknown field 'farbe' (accepted: name, optim, part, phase, shares, stages)"]),
        ("name: a\nstages: 8", (), ["'stages': expected a list, such as [8]"]),
        ("name: a\nstages: {lr: 1}", (), ["'stages'", "tuple"]),
        ("name: a\noptim: {lrr: 1}", (), ["run.yaml", "'optim.lrr'; did you mean 'optim.lr'?", "accepted: lr, steps"]),
        ("name: a\nstages: [{lrr: 1}]", (), ["run.yaml", "'stages.0.lrr'", "accepted: lr, steps"]),
        ("name: a\noptim: {learning_rate: 1}", (), ["'optim.learning_rate'; did you mean 'optim.lr'?"]),
        (
            "name: a\nstore: b\ncolumns: []\ncpus: 8\ngpus: 1",
            (),
            ["run.yaml: a file for avllm featurize run, it seems: Run has no field store, columns, cpus ... (accepted"],
        ),
        ("name: a\nsize: 1\ncpus: 8\ngpus: 1", (), ["a file of another command, it seems: Run has no field size,"]),
        ("name: a\n1: b", (), ["run.yaml", "1"]),
        ('name: a\n"x\\ny": b', (), ["run.yaml", "x"]),
        ("name: 3", (), ["run.yaml", "'name'", "string"]),
        (
            "name: a\nstages: [{steps: many}]",
            (),
            ["run.yaml", "'stages.0.steps': expected a valid integer", "found 'many'"],
        ),
        ("name: a\nstages: [{steps: 0}]", (), ["run.yaml", "'stages.0.steps': expected greater than 0, found 0"]),
        ("", (), ["run.yaml: the file is empty; Run needs name"]),
        ("name: a\npart: {kind: b, lr: 1}", (), ["unknown field 'part.lr' (accepted: kind, size)"]),
        ("", ("optim.lr=1",), ["run.yaml: field 'name': is required"]),
        (
            "name: a\noptim:\n  lr: 1\n  steps: 3\n  lr: 2",
            (),
            ["run.yaml: not YAML: line 5: 'lr' stands here and on line 3"],
        ),
        ("name: a\nstages: [{lr: 1},\n\n\nname: b", (), ["not YAML: line 5: ", "belongs to what begins on line 2"]),
        (
            "name: a\nphase: x",
            (),
            ["field 'phase': expected 'mat' or 'pt1', found 'x', or expected a list, such as [{lr: ...}]"],
        ),
        ("name: a\nshares: {see: 1}", (), ["unknown field 'shares.see': expected 'visual' or 'audio'"]),
        (
            "name: a\nphase: []",
            (),
            ["field 'phase': expected 'mat' or 'pt1', or expected at least 1 of a list, found 0"],
        ),
        ("name: a\nphase: [b]", (), ["field 'phase.0': expected {lr: ...}, found 'b'"]),
        ("- a", (), ["run.yaml", "mapping", "list"]),
        ("a: [", (), ["run.yaml", "not YAML: line 1"]),
        ("name: a\noptim:\n\tlr: 1", (), ["run.yaml: not YAML: line 3: ", "indent with blanks instead of tabs"]),
        (b"\xff\xfe\x00", (), ["run.yaml: not YAML: the file is not text"]),
        (b"name: \xff", (), ["run.yaml: not YAML: the file is not text"]),
        (GOOD, ("stages.2.lr=1",), ["'stages.2.lr'", "no field", "its list has the entries 0 to 1"]),
        (GOOD, ("name=",), ["override 'name=': has no value; name=null is none, name='' an empty text"]),
        (GOOD, ("stages.x.lr=1",), ["'stages.x.lr'", "no field"]),
        (GOOD, ("name.x=1",), ["'name.x'", "no field"]),
        (GOOD, ("name",), ["'name'", "field=value"]),
        (GOOD, ("=1",), ["'=1'", "field=value"]),
        (GOOD, ("name=[",), ["'name=['", "not YAML"]),
        (GOOD, ("stages.0.steps=x",), ["override 'stages.0.steps=x': field 'stages.0.steps'", "integer"]),
        (GOOD, ("optim.lrr=1",), ["override 'optim.lrr=1': unknown field 'optim.lrr'; did you mean 'optim.lr'?"]),
        (GOOD, ("optim={lrr: 1}", "name=b"), ["override 'optim={lrr: 1}': unknown field 'optim.lrr'"]),
        ("nmae: a", ("name=3",), ["override 'name=3': field 'name'", "run.yaml: unknown field 'nmae'"]),
        (GOOD, ("stages.0.lr=fast",), ["expected a valid number, found 'fast'"]),
        (GOOD, ("names=b",), ["override 'names=b': unknown field 'names'; did you mean 'name'?"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(load, text, overrides, words):
    """Bad settings stop before anything starts, in one line with the file, the field and what it accepts."""
    with pytest.raises(UserError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert not [word for word in words if word not in message], message


def test_a_missing_file_is_one_line(tmp_path):
    """A path that is not there, or a folder, is named; not a traceback."""
    for path in (tmp_path, tmp_path / "no.yaml"):
        with pytest.raises(UserError, match=path.name):
            load_settings(Run, path)


def test_shipped_configurations_are_known_by_name(tmp_path, monkeypatch):
    """`--config demo` works from any folder, unless a file of that name is there."""
    monkeypatch.chdir(tmp_path)
    config = load_settings(TrainConfig, "demo-stage1", ["steps=3"])
    assert (config.stage, config.steps, config.visual) == (1, 3, "clip-vit-s-32")
    with pytest.raises(UserError, match="demo_stage1: no such file; did you mean 'demo-stage1'") as caught:
        load_settings(TrainConfig, "demo_stage1")
    assert "shipped configurations of TrainConfig: demo-stage1, demo-stage2, paper-" in str(caught.value)
    (tmp_path / "paper-stage1").mkdir()  # a folder is no configuration
    assert load_settings(TrainConfig, "paper-stage1").stage == 1
    (tmp_path / "demo-stage1").write_text("stage: 7")
    with pytest.raises(UserError, match="expected 1 or 2, found 7"):
        load_settings(TrainConfig, "demo-stage1")


BASE = {
    "name": "clip",
    "modality": "visual",
    "numerics": {"layer": -2, "grid": [4, 8], "dtype": "float16", "inner": {"a": 1, "b": None}},
    "features": {"temporal": {"shape": [None, 4], "dtype": "float16"}, "spatial": {"shape": [3], "dtype": "float32"}},
}
CHANGES = [
    {"name": "clap"},
    {"modality": "audio"},
    *({"numerics": BASE["numerics"] | change} for change in
      ({"layer": -1}, {"layer": -2.0}, {"grid": [8, 4]}, {"dtype": "x"}, {"inner": {"a": 1}}, {"new": 0})),
    *({"features": BASE["features"] | {"temporal": t}} for t in
      ({"shape": [4, 4], "dtype": "float16"}, {"shape": [None, 4], "dtype": "float32"},
       {"shape": [None, 4, 1], "dtype": "float16"})),
    {"features": {"temporal": BASE["features"]["temporal"]}},
]  # fmt: skip


def test_equal_settings_give_an_equal_digest():
    """The digest does not depend on the order of names or a trip through JSON; else the same encoder runs twice."""
    backwards = {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(BASE.items())}
    specs = [ColumnSpec(**BASE), ColumnSpec(**backwards), ColumnSpec(**json.loads(canonical_json(BASE)))]
    assert len({spec.fingerprint for spec in specs}) == 1
    assert specs[0].folder == f"clip.{specs[0].fingerprint[:6]}"


def test_every_field_shapes_the_digest():
    """Any change of a setting is another column; else numbers of two encoders mix in one."""
    digests = {ColumnSpec(**BASE | change).fingerprint for change in [{}, *CHANGES]}
    assert len(digests) == len(CHANGES) + 1


def test_columns_stand_side_by_side(root):
    """Names resolve, two digests of one name are told apart, a half-made column is not there."""
    storage = Storage(root)
    specs = [ColumnSpec(**BASE), ColumnSpec(**BASE | {"name": "clip-v2"}), ColumnSpec(**BASE | {"numerics": {}})]
    for spec in specs[:2] * 2:
        create_column(storage, spec, {})
    storage.write(f"columns/{specs[2].folder}/.tmp-1", b"")  # what a run killed before column.json leaves
    storage.write("columns/README", b"not a column")
    assert [open_column(storage, n).spec for n in ("clip", "clip-v2")] == specs[:2]
    assert {column.name for column in list_columns(storage)} == {spec.folder for spec in specs[:2]}
    create_column(storage, specs[2], {})
    with pytest.raises(UserError, match="several columns match 'clip'"):
        open_column(storage, "clip")
    with pytest.raises(UserError, match="there is no column 'clap'"):
        open_column(storage, "clap")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{}", b'{"format":2}', b'{"format":1}'])
def test_a_bad_column_file_is_one_line(toy, data):
    """A column.json that is not one of ours is named in one line."""
    path = f"columns/{toy.spec.folder}/column.json"
    toy.storage.write(path, data)
    with pytest.raises(UserError, match=r"column\.json") as caught:
        open_column(toy.storage, toy.spec.name)
    assert "\n" not in str(caught.value)


def test_a_changed_spec_is_refused(toy):
    """A spec edited by hand does not pass for the one whose numbers are stored."""
    path = f"columns/{toy.spec.folder}/column.json"
    toy.storage.write(path, toy.storage.read(path).replace(b'"layer":-2', b'"layer":-1'))
    with pytest.raises(DamagedError, match=r"column\.json: differs from its checksum"):
        open_column(toy.storage, toy.spec.name)
    with pytest.raises(DamagedError, match=r"column\.json: differs from its checksum"):
        create_column(toy.storage, toy.spec, {})


def test_a_spec_cannot_be_changed_or_misspelt():
    """A spec is fixed once made and refuses unknown fields; else the digest would not be of what ran."""
    with pytest.raises(ValueError, match="frozen"):
        Feature(shape=(1,), dtype="float16").dtype = "float32"
    with pytest.raises(ValueError, match="extra"):
        ColumnSpec(**BASE, weights="x")
