"""What is on record of a version: how it was made, which never changes, and what people call it."""

from typing import Any

from pydantic import BaseModel, Field

from app.store.references import Reference

FORMAT = 1


class DictionaryRecord(BaseModel):
    """What is told of one version of a dictionary."""

    format: int = FORMAT
    name: str
    version: int
    versions: list[int] = Field(default_factory=list, description="All versions of the name.")
    nb_concepts: int
    n_features: int
    created_at: str
    sha256: str = Field(description="SHA-256 of the weights file.")
    figures_sha256: str | None = Field(
        None, description="SHA-256 of the file of its concepts' figures; none where it was not fitted here."
    )
    parameters: dict[str, Any] = Field(description="What the fit was told.")
    data: dict[str, Any] = Field(description="Shape and hash of the activations.")
    metrics: dict[str, Any] = Field(description="How good the dictionary is.")
    loss_history: list[tuple[int, float]] = Field(default_factory=list)
    seconds: float | None = Field(None, description="How long the fit took.")
    software: dict[str, str] = Field(description="Versions of what made it.")
    job: str | None = Field(None, description="Id of the job that made it; none for an imported dictionary.")
    labels: dict[str, str] = Field(default_factory=dict, description="What people have noted of it.")
    concept_labels: dict[int, str] = Field(default_factory=dict, description="What people call its concepts.")

    @property
    def reference(self) -> Reference:
        """Name and version."""
        return Reference(self.name, self.version)


class Labels(BaseModel):
    """The one part of a version that changes: it has a file of its own."""

    labels: dict[str, str] = Field(default_factory=dict)
    concept_labels: dict[int, str] = Field(default_factory=dict)
