"""What requests and answers hold: one pydantic model each. The OpenAPI document is made from these."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from app.arrays import Activations, Codes, Concepts, MaybeActivations
from app.store.records import DictionaryRecord
from app.store.references import Reference, check_name
from app.worker.messages import INIT_METHODS, Dtype, Solver
from core.constants import EPOCHS, MAX_ITER, NEAR_DENSE_SHARE, TOL

Name = Annotated[
    str,
    AfterValidator(check_name),
    Field(description="Letters, digits, `.`, `_`, `-`; at most 128 characters.", examples=["digits"]),
]
DictionaryReference = Annotated[
    str,
    AfterValidator(lambda text: str(Reference.parse(text))),
    Field(description="A dictionary's name (its latest version), or `name@version`.", examples=["digits"]),
]


def _init(text: str) -> str:
    """A method, or else a dictionary's reference. A method's name wins over a dictionary of that name."""
    return text if text in INIT_METHODS else str(Reference.parse(text))


Init = Annotated[
    str,
    AfterValidator(_init),
    WithJsonSchema({"anyOf": [{"enum": list(INIT_METHODS)}, {"type": "string"}]}),
    Field(
        description="Where D begins: `nndsvda`, which `auto` means too, `random`, or a dictionary, `name` or "
        "`name@version`. One that is called like a method is meant with its version alone.",
        examples=["auto", "digits@1"],
    ),
]
EncodingFormat = Annotated[
    Literal["float", "base64"],
    Field(description="How a JSON answer holds arrays: as numbers, or as base64 text with shape and dtype."),
]
MAX_LABELS, MAX_CONCEPT_LABELS = 100, 10_000  # set by one request
ComputeDtype = Annotated[
    Dtype, Field(description="What is computed in and answered in; `float64` where digits matter more than time.")
]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Clip = Annotated[bool, Field(description="Make negative values zero instead of refusing them.")]


class Fields(BaseModel):
    """Base of every request: a misspelt field is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class FitParameters(Fields):
    """What a fit is told, beside its data."""

    name: Name
    nb_concepts: int = Field(ge=1, description="Concepts of the dictionary (k).", examples=[2])
    solver: Solver = Field("hals", description="The algorithm; `hals` is the fastest and, as a rule, ends lowest.")
    max_iter: int = Field(MAX_ITER, ge=1, description="Most iterations; most epochs of an online fit.")
    tol: float = Field(TOL, ge=0, lt=1, allow_inf_nan=False, description="Relative change of loss at which to stop.")
    init: Init = "auto"
    epochs: int | None = Field(
        None,
        ge=1,
        description="How often an online fit reads each row of `files`, in memory that does not grow with them. "
        f"Large files are fitted so, by default in {EPOCHS} epochs; given a number, any are. `hals` alone.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of what is random; the same seed, the same dictionary.")
    ranks: int = Field(
        1, ge=1, description="Processes that share out the rows; more than 1 only where the service allows it."
    )


def _data_or_files(schema: dict[str, Any]) -> None:
    schema["oneOf"] = [{"required": ["data"]}, {"required": ["files"]}]
    del schema["properties"]["data"]["default"]


class FitRequest(FitParameters):
    """`data`, or in JSON `files` in its place."""

    model_config = ConfigDict(json_schema_extra=_data_or_files)

    clip: Clip = False
    files: list[Pattern] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="npy files of the service's data directory, by names or patterns (`*`, `?`, `[…]`, `**`); their "
        "rows follow each other.",
        examples=[["layer4/*.npy"]],
    )
    data: MaybeActivations = None


class EncodeRequest(Fields):
    dictionary: DictionaryReference
    clip: Clip = False
    sparse: bool = Field(False, description="Answer with the non-zero codes alone, as compressed sparse rows.")
    top_k: int | None = Field(None, ge=1, description="Answer with the largest codes of each row alone; sparse.")
    reconstruct: bool = Field(
        False, description="Add each row's relative error, ‖a − zD‖ / ‖a‖: of the codes that are answered."
    )
    encoding_format: EncodingFormat = "float"
    dtype: ComputeDtype = "float32"
    data: Activations


class ImportRequest(Fields):
    data: Concepts


Label = Annotated[str, StringConstraints(min_length=1, max_length=500)]


LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
ConceptIndex = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]


def _at_most(count: int) -> BeforeValidator:
    """Told before each of them is looked at, of which there may be a million."""

    def few(value: object) -> object:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"at most {count} at a time, not {len(value)}")
        return value

    return BeforeValidator(few)


class LabelRequest(Fields):
    """Labels to set; null removes one (RFC 7396)."""

    labels: Annotated[dict[LabelKey, Label | None], _at_most(MAX_LABELS)] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="What is noted of the dictionary, by key."
    )
    concept_labels: Annotated[dict[ConceptIndex, Label | None], _at_most(MAX_CONCEPT_LABELS)] = Field(
        default_factory=dict, max_length=MAX_CONCEPT_LABELS, description="What concepts are called, by their index."
    )


class DecodeRequest(Fields):
    dictionary: DictionaryReference
    encoding_format: EncodingFormat = "float"
    dtype: ComputeDtype = "float32"
    data: Codes


class ArrayText(BaseModel):
    """With `encoding_format` base64: an array's bytes, little-endian and in C order."""

    base64: str
    shape: list[int]
    dtype: str


Rows = list[list[float]] | ArrayText
Numbers = list[float] | ArrayText
Indices = list[int] | ArrayText


class WeightsAnswer(BaseModel):
    dictionary: str
    version: int
    weights: list[list[float]] = Field(description="D, (nb_concepts, n_features), non-negative.")


class EncodeAnswer(BaseModel):
    dictionary: str
    version: int
    converged: bool = Field(description="Whether every row met the tolerance on its KKT residual.")
    codes: Rows | None = Field(None, description="(rows, nb_concepts), non-negative.")
    shape: Indices | None = Field(None, description="With `sparse` or `top_k`, instead of `codes`: its shape,")
    indptr: Indices | None = Field(None, description="where each row begins in `indices` and `values`,")
    indices: Indices | None = Field(None, description="the concepts used, row after row,")
    values: Numbers | None = Field(None, description="and their codes.")
    relative_error: Numbers | None = Field(None, description="With `reconstruct`: of each row.")


class DecodeAnswer(BaseModel):
    dictionary: str
    version: int
    activations: Rows = Field(description="(rows, n_features), non-negative.")


class Progress(BaseModel):
    iteration: int = 0
    max_iter: int
    loss: float | None = Field(None, description="½‖A − ZD‖².")
    relative_error: float | None = Field(None, description="‖A − ZD‖ / ‖A‖.")
    kkt_residual: float | None = Field(None, description="How far from a stationary point; 0 is one.")
    seconds: float = Field(0.0, description="That the fit has taken, all attempts together.")
    eta_seconds: float | None = Field(None, description="Time to `max_iter`; a fit may well stop before it.")


State = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobProgress(Progress):
    """Of a job that has not ended: one goes back into the queue where a worker or the service has died on it."""

    state: State


class ListedJob(BaseModel):
    """One fit under way or ended, as it stands in a list: without what grows with it."""

    id: str
    state: State
    name: str = Field(description="Name of the dictionary that it fits.")
    version: int | None = Field(None, description="Version of the dictionary, once the job has succeeded.")
    parameters: dict[str, Any]
    progress: Progress
    attempts: int = Field(
        description="How often it was started; over 1 where a worker or the service died on it, or was stopped."
    )
    resumed_from: int | None = Field(
        None,
        description="Iteration of the checkpoint from which its latest attempt went on; none where that began anew.",
    )
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    error: dict[str, Any] | None = Field(None, description="A problem (RFC 9457), where the job failed.")


class Job(ListedJob):
    """One fit under way or ended."""

    loss_history: list[tuple[int, float]] = Field(default_factory=list, description="(iteration, loss), thinned.")


AnyJob = TypeVar("AnyJob", bound=ListedJob)


class JobList(BaseModel):
    jobs: list[ListedJob]
    next: str | None = Field(None, description="Where there are more: the `cursor` that continues this list.")


class DictionaryList(BaseModel):
    dictionaries: list[DictionaryRecord]


class ConceptColumns(BaseModel):
    """The concepts of a dictionary: one number of each in each column."""

    dictionary: str
    version: int
    nb_concepts: int
    n_features: int
    rows: int | None = Field(description="Rows that were counted.")
    energy: list[float] | None = Field(description="Its share of all concepts' energy.")
    uses: list[int] | None = Field(description="Rows with a code above zero.")
    largest: list[float] | None = Field(description="The largest code.")
    nearest: list[int] | None = Field(description="The concept of the largest cosine; -1: none has one above zero.")
    cosine: list[float] | None = Field(description="That cosine.")
    labels: dict[str, str] = Field(description="What concepts are called, by their index.")


class TopRow(BaseModel):
    row: int = Field(description="Of the data that was fitted, from 0; across files in their order.")
    code: float


class NearConcept(BaseModel):
    concept: int
    cosine: float
    label: str | None


class ConceptTogether(BaseModel):
    concept: int
    overlap: float = Field(description="Rows in which both are active, by rows in which either is.")
    label: str | None


class Concept(BaseModel):
    """One concept of a dictionary."""

    dictionary: str
    version: int
    concept: int
    label: str | None
    weights: list[float] = Field(description="Its row of D.")
    norm: float
    energy: float | None = Field(description="Its share of all concepts' energy.")
    rows: int | None = Field(description="Rows that were counted.")
    uses: int | None = Field(description="Rows with a code above zero.")
    largest: float | None = Field(description="The largest code.")
    histogram: list[int] | None = Field(description="Codes above zero, in 20 equal bins from 0 to the largest.")
    top_rows: list[TopRow] | None = Field(description="The rows of the data with the largest codes.")
    nearest: list[NearConcept] = Field(description="The concepts of the largest cosines.")
    together: list[ConceptTogether] | None = Field(description="The concepts that are active in the same rows.")
    dead: bool | None = Field(description="Whether no row uses it, or it is zero.")
    near_dense: bool | None = Field(
        description=f"Whether it is active in more than {100 * NEAR_DENSE_SHARE:g} % of the rows."
    )


class Compared(BaseModel):
    dictionary: str
    version: int
    nb_concepts: int


class MatchedPair(BaseModel):
    a: int
    b: int
    cosine: float


class Comparison(BaseModel):
    """Which concept of one dictionary is which of another."""

    a: Compared
    b: Compared
    n_features: int
    matches: list[MatchedPair] = Field(description="From the largest cosine on; as many as the smaller has concepts.")
    mean_cosine: float
    median_cosine: float
    stability: float = Field(description="Share of the larger one's concepts that match with a cosine above 0.9.")


class ProblemAnswer(BaseModel):
    """A problem of RFC 9457."""

    type: str = Field(description="What kind of problem; stays the same from version to version.")
    title: str = Field(description="The same in words.")
    status: int = Field(description="The answer's status.")
    detail: str = Field(description="What was wrong here, and what would be right.")
    errors: list[dict[str, Any]] | None = Field(
        None, description="Where fields are wrong: of at most 20 of them `loc`, their place, and `msg`."
    )
