"""The escalation policy: a versioned TOML file, checked as it is read, and hashed into every answer.

| section | what it says |
|---|---|
| `format`, `name`, `version` | 1; what the file is called; counted up when it changes |
| `[hard]` | lanes and token count that always escalate; never shed, and decided before any score |
| `[confidence]`, `[margin]` | soft rules: a threshold each, and the method of its score |
| `[gain]` | what the calibrated gain of a fallback must exceed |
| `[budget]` | share of the requests that may escalate, over which window, observed or enforced |
| `[answer]` | which answer is final after a fallback: `last` or `blend` |
| `[chain]` | the tiers that are asked, in order |

A rule whose section is missing does not exist. Unknown keys are errors: a misspelt threshold must
not be a silent default. The shipped files are in `amn/policies/`.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from amn.errors import ConfigError

FORMAT = 1
PRESETS_FOLDER = Path(__file__).parent / "policies"
DEFAULT = "calibrated"

TOP1, MEAN_TOP_K, DISTINCT, RAW = "top1", "mean_top_k", "distinct", "raw"
OBSERVE, ENFORCE, LAST, BLEND = "observe", "enforce", "last", "blend"
ACCURACY, SECONDARY = "accuracy", "secondary"
CHAINS = ((), (ACCURACY,), (ACCURACY, SECONDARY))

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HardRules:
    """The rules that always escalate.

    Attributes:
        lanes: Rule `high_stakes_lane`.
        tokens_max: Rule `long_context`: more tokens than this. A request's `tokens` is what its
            producer counted: word pieces of the encoder's own tokenizer over the five texts together,
            without special tokens, before any truncation. 0 is unknown, and never fires.
    """

    lanes: tuple[str, ...] = ()
    tokens_max: int = 384

    def __post_init__(self) -> None:
        _check(self.tokens_max > 0, "hard.tokens_max", self.tokens_max, "use a positive count of tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceRule:
    """Rule `low_confidence`.

    Attributes:
        below: Fires below this cosine.
        method: `top1`, the best cosine to the bank; or `mean_top_k`, the mean of the `k` best in a
            seeded sample of `sample_count` references.
    """

    below: float
    method: str = TOP1
    k: int = 50
    sample_count: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        _check(-1 <= self.below <= 1, "confidence.below", self.below, "use a cosine, -1 to 1")
        _choice("confidence.method", self.method, (TOP1, MEAN_TOP_K))
        _check(0 < self.k <= self.sample_count, "confidence.k", self.k, "use 1 to sample_count")


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginRule:
    """Rule `thin_margin`.

    Attributes:
        below: Fires below this difference of the two best cosines.
        method: `distinct` compares two different texts: near-duplicates were merged when the bank
            was built. `raw` counts every source vector: the margin is 0 where the best reference
            stands for more than one.
    """

    below: float
    method: str = DISTINCT

    def __post_init__(self) -> None:
        _check(0 <= self.below <= 2, "margin.below", self.below, "use a difference of cosines, 0 to 2")
        _choice("margin.method", self.method, (DISTINCT, RAW))


@dataclass(frozen=True, slots=True, kw_only=True)
class GainRule:
    """The use of the calibrated score.

    Attributes:
        min: A soft rule escalates only where the predicted gain is above this cosine.
        rule: Whether a gain above `min` fires by itself, as `worth_escalating`.
    """

    min: float = 0.0
    rule: bool = False

    def __post_init__(self) -> None:
        _check(-2 <= self.min <= 2, "gain.min", self.min, "use a difference of cosines, -2 to 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """The share of all completed requests that may escalate.

    Attributes:
        rate: Share over any window.    window_s: Length of the window.
        reserve: Share of the requests that soft rules leave unspent, for bursts of the hard ones.
        hard_rate: Share of the requests of a window that hard rules may escalate; beyond it, and beyond a
            hundred, AMN answers. So who sends everything in a hard lane leaves some to the others.
        mode: `observe`: the rules win, and what is beyond the budget is counted. `enforce`: the
            best candidates within the budget, AMN answers the others.
    """

    mode: str = OBSERVE
    rate: float = 0.20
    reserve: float = 0.0
    hard_rate: float = 1.0
    window_s: int = 3600

    def __post_init__(self) -> None:
        _choice("budget.mode", self.mode, (OBSERVE, ENFORCE))
        _check(0 <= self.rate <= 1, "budget.rate", self.rate, "use a share, 0 to 1")
        _check(0 <= self.reserve <= self.rate, "budget.reserve", self.reserve, "use 0 to budget.rate")
        _check(0 < self.hard_rate <= 1, "budget.hard_rate", self.hard_rate, "use a share above 0, up to 1")
        _check(60 <= self.window_s <= 86_400, "budget.window_s", self.window_s, "use 60 to 86400")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRule:
    """The final answer: `last`, the last fallback's; `blend`, the calibrated combination."""

    rule: str = LAST

    def __post_init__(self) -> None:
        _choice("answer.rule", self.rule, (LAST, BLEND))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """The fallback tiers in order.

    Attributes:
        tiers: None, `accuracy`, or `accuracy` and `secondary`.
        agreement_min: The secondary tier is also asked when the answers so far have a smaller
            cosine than this; otherwise only when the accuracy tier could not answer.
    """

    tiers: tuple[str, ...] = (ACCURACY,)
    agreement_min: float = -1.0

    def __post_init__(self) -> None:
        _choice("chain.tiers", self.tiers, CHAINS)
        _check(-1 <= self.agreement_min <= 1, "chain.agreement_min", self.agreement_min, "use a cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class EscalationPolicy:
    """All rules of one file; the module's text says what each section is."""

    name: str
    version: int = 1
    hard: HardRules = field(default_factory=HardRules)
    confidence: ConfidenceRule | None = None
    margin: MarginRule | None = None
    gain: GainRule | None = None
    budget: BudgetRule = field(default_factory=BudgetRule)
    answer: AnswerRule = field(default_factory=AnswerRule)
    chain: Chain = field(default_factory=Chain)

    @property
    def needs_bank(self) -> bool:
        """Says whether a rule looks at the reference bank."""
        return self.confidence is not None or self.margin is not None

    @property
    def needs_calibration(self) -> bool:
        """Says whether a rule looks at the calibrated gain, or blends with its weights."""
        return self.gain is not None or self.answer.rule == BLEND

    @property
    def confidence_method(self) -> str:
        """Stamped on answers; `none` where no bank was asked."""
        if self.confidence is None:
            return TOP1 if self.needs_bank else "none"
        if self.confidence.method == MEAN_TOP_K:
            return f"mean_top_{self.confidence.k}"
        return self.confidence.method

    @property
    def margin_method(self) -> str:
        """Works like `confidence_method`."""
        return self.margin.method if self.margin else DISTINCT if self.needs_bank else "none"

    def policy_id(self, calibration_id: str = "") -> str:
        """`name@` and the hash of every value and of the calibration: stamped on each answer."""
        values = asdict(self) | {"calibration": calibration_id if self.needs_calibration else ""}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        return f"{self.name}@{digest[:12]}"


def presets() -> list[str]:
    """Names of the shipped policies."""
    return sorted(path.stem for path in PRESETS_FOLDER.glob("*.toml"))


def load_policy(name: str) -> EscalationPolicy:
    """A shipped policy by name, or one from a file.

    Raises:
        ConfigError: No such preset or file, or a value that cannot be; the text names it.
    """
    path = PRESETS_FOLDER / f"{name}.toml" if name in presets() else Path(name)
    if not path.is_file():
        known = ", ".join(presets())
        raise ConfigError(f"policy {name!r} is neither a preset ({known}) nor a file; `amn policy list`")
    return parse_policy(path.read_text("utf-8"), str(name))


def parse_policy(text: str, source: str) -> EscalationPolicy:
    """The policy of a TOML text; `source` names it in errors.

    Raises:
        ConfigError: Not TOML, an unknown or missing key, or a value that cannot be.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # no TOML, a number of 5,000 digits, ten thousand brackets
        raise ConfigError(f"policy {source}: not TOML: {error}") from error
    try:
        form = table.pop("format", None)
        if form != FORMAT:
            raise ConfigError(f"format is {form!r}; this version reads format = {FORMAT}")
        some: dict[str, type[Any]] = {name: kind for name, kind in _SECTIONS.items() if name in table}
        made = {name: _section(kind, table[name], name) for name, kind in some.items()}
        return _section(EscalationPolicy, table | made, "")
    except ConfigError as error:
        raise ConfigError(f"policy {source}: {error}") from error


_SECTIONS: dict[str, type] = {
    "hard": HardRules,
    "confidence": ConfidenceRule,
    "margin": MarginRule,
    "gain": GainRule,
    "budget": BudgetRule,
    "answer": AnswerRule,
    "chain": Chain,
}
_PLAIN = {"str": str, "int": int, "float": float, "bool": bool}


def _section(kind: type[_T], table: Any, where: str) -> _T:
    prefix = f"{where}." if where else ""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}; make it a section, [{where}]")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ConfigError(f"{prefix}{key} is not known; known here: {', '.join(known)}")
    for name, f in known.items():
        if name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{prefix}{name} is missing")
    return kind(**{key: _value(prefix + key, known[key].type, value) for key, value in table.items()})


def _value(where: str, kind: Any, value: Any) -> Any:
    """Checked against the field's annotation, which is text here; sections were made already."""
    if kind == "tuple[str, ...]":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where} is {value!r}; use a list of text")
        return tuple(value)
    expected = _PLAIN.get(kind)
    if expected is float and type(value) is int:
        return float(value)
    _check(expected in (None, type(value)), where, value, f"use {kind}")
    return value


def _check(good: bool, where: str, value: object, advice: str) -> None:
    if not good:
        raise ConfigError(f"{where} is {value!r}; {advice}")


def _choice(where: str, value: object, allowed: tuple[Any, ...]) -> None:
    shown = ", ".join(repr(list(a) if isinstance(a, tuple) else a) for a in allowed)
    _check(value in allowed, where, list(value) if isinstance(value, tuple) else value, f"use {shown}")
