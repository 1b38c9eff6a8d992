"""The command line: one flag for every field of the settings, and for every field of ModelConfig.

Also the flat form of settings, flag -> value, as stored in args.json and metrics.json.
"""
from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, replace
from typing import Any

from data_provider.files import SEPARATOR
from exp.foreign_flags import is_foreign, refusal
from exp.foreign_names import refused_values
from exp.section import SPECULATION, fields_of
from exp.settings import SECTIONS, Settings
from models.config import DRAFT_ONLY, ModelConfig
from models.registry import DRAFTS
from utils.errors import UserError
from utils.limits import OneOf, OrNone, Switch

TITLES = {"run": "run", "model": "model and architecture (read from the checkpoint's args.json if there is one)",
          "data": "data", "train": "training and distillation", "spec": "speculation", "report": "reports",
          "panel": "forecasts of long tables (--do_predict)"}
DESCRIPTION = "Speculative decoding of autoregressive time-series transformers"
EXAMPLES = """examples:
  train    run.py --model_id mine --data_path mine.csv --root_path ./data --use_norm --norm_mode causal
  test     run.py --is_training 0 --test_dir TARGET --test_pred_len 336
  compare  run.py --is_training 0 --compare --test_dir TARGET --spec_draft_ckpt checkpoints/DRAFT --test_pred_len 336
  predict  run.py --do_predict --test_dir TARGET --root_path ./data --data_path mine.csv --test_pred_len 336
  inspect  run.py --inspect checkpoints/TARGET
TARGET and DRAFT are folders under --checkpoints. README.md and docs/ explain the rest."""
NOT_FLAGS = ("asked", "config", "trained_on")  # fields of ModelSettings that follow from the flags of ModelConfig


@dataclass(frozen=True)
class Flag:
    """A flag and the field that it sets; section 'config' for the fields of ModelConfig."""

    name: str
    section: str
    field: Field[Any]

    def declared(self, what: str, otherwise: Any = ()) -> Any:
        """`needs`, `not_with` or `free` from its declaration."""
        return self.field.metadata.get(what, otherwise)


def _flags_of(section: str, kind: type) -> list[Flag]:
    return [Flag(own.metadata.get("flag", name), section, own) for name, own in fields_of(kind).items()
            if name not in NOT_FLAGS]


_NEEDS_DRAFT = (*(f"model={draft}" for draft in DRAFTS), *SPECULATION)
FLAGS = {flag.name: flag for section, kind in SECTIONS.items()
         for flag in _flags_of(section, kind) + (_flags_of("config", ModelConfig) if section == "model" else [])}
DEFAULTS: dict[str, Any] = {flag.name: flag.field.default for flag in FLAGS.values()}
NEEDS = {name: _NEEDS_DRAFT if name in DRAFT_ONLY else flag.declared("needs") for name, flag in FLAGS.items()}


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, like every other error of this program, which say what to write instead.

    also_known: flags of the calling program, to propose in place of unknown ones.
    """

    also_known: frozenset[str] = frozenset()

    def error(self, message: str):
        raise UserError(f"{message} (--help lists the flags)")

    def parse_args(self, args=None, namespace=None):
        args, own = sys.argv[1:] if args is None else list(args), self.own_flags()
        # before parsing, which would take --checkpoint of another program for a short form of --checkpoints
        unknown = [argument for argument in args if is_foreign(argument) and argument.partition("=")[0] not in own]
        problems = refused_values(args)
        found, rest = (None, unknown) if unknown or problems else self.parse_known_args(args, namespace)
        if rest:
            problems.append(refusal(rest, sorted(own | self.also_known)))
        if problems:
            self.error("; ".join(problems))
        return found

    def own_flags(self) -> frozenset[str]:
        return frozenset(flag for flag in self._option_string_actions if flag.startswith("--"))


def reader(limit):
    """An argparse type that parses a value by its limit and reports why it is invalid."""
    def read(text: str):
        try:
            return limit.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return read


def build_parser() -> Parser:
    parser = Parser(prog="run.py", usage="run.py [FLAGS]", description=DESCRIPTION, epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    groups = {section: parser.add_argument_group(title) for section, title in TITLES.items()}
    for flag in FLAGS.values():
        _add(groups["model" if flag.section == "config" else flag.section], flag)
    return parser


def _add(group, flag: Flag) -> None:
    limit, default = flag.field.metadata["limit"], flag.field.default
    words = flag.field.metadata["help"].replace("%", "%%")
    if not isinstance(limit, Switch) and default is not None and "default:" not in words:
        words += f" (default: {default})" if words else f"default: {default}"
    if isinstance(limit, Switch):
        action = argparse.BooleanOptionalAction if default else "store_true"
        group.add_argument(f"--{flag.name}", action=action, help=words)
        return
    inner = limit.limit if isinstance(limit, OrNone) else limit
    if getattr(inner, "several", False):
        group.add_argument(f"--{flag.name}", nargs="+", type=reader(inner), help=words, metavar="PATH")
        return
    choices = sorted(inner.names) if isinstance(inner, OneOf) else None
    group.add_argument(f"--{flag.name}", type=None if choices else reader(inner), choices=choices, help=words,
                       metavar=None if choices else "N" if hasattr(inner, "low") else flag.name.upper())


def given_flags(argv: Sequence[str] | None, calling: Parser | None = None) -> dict[str, Any]:
    """The flags that are given in a command line, with their values.

    calling: the parser of a program that has taken its own flags out of argv.
    """
    parser = build_parser()
    if calling is not None:
        parser.also_known = calling.own_flags()
    given = vars(parser.parse_args(argv))
    return {name: _read_choice(name, SEPARATOR.join(value) if isinstance(value, list) else value)
            for name, value in given.items()}


def _read_choice(name: str, value: Any) -> Any:
    limit = FLAGS[name].field.metadata["limit"]
    return limit.read(value) if isinstance(limit, OneOf) else value


def flat(settings: Settings) -> dict[str, Any]:
    """Flag -> value as it was used, in plain JSON types."""
    settings = replace(settings, spec=settings.spec.filled())
    values = {name: getattr(settings.model.config if flag.section == "config" else getattr(settings, flag.section),
                            flag.field.name) for name, flag in FLAGS.items()}
    values |= {"output_token_len": settings.model.config.patch_len, "spec_emit": settings.spec.emission}
    return json.loads(json.dumps(values))


def in_flags(text: str) -> str:
    """The text of an error, with every parameter in backticks replaced by its flag."""
    def flag(match: re.Match[str]) -> str:
        return f"--{NAMES[match[1]]}" if match[1] in NAMES else match[0]
    return re.sub(r"`(\w+)`", flag, text)


def sections(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Flag -> value, as section -> field -> value."""
    parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name in FLAGS:
            parts.setdefault(FLAGS[name].section, {})[FLAGS[name].field.name] = value
    return parts


# parameter -> flag
NAMES = {flag.field.name: name for name, flag in FLAGS.items()} | {"model": "model"}
