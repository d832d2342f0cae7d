"""What a correction has found: an edit with its report card, or that no dose helps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExciseError
from ..core.files.json_text import json_text
from ..core.files.output import remove_progress
from ..core.loading import Loaded
from ..edits.apply import bind
from ..edits.edit import Edit
from ..eval.gate import junit
from .card import card_json, card_markdown, headline
from .card_page import card_page
from .dose import DoseResponse
from .proof import ReportCard


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Correction:
    """The result of `correct_model`; the model itself is left as it was."""

    dose: DoseResponse
    """Every dose that was tried, and which was chosen; none where none helps within the budget."""
    card: ReportCard | None
    """Before and after on unseen data, random edits, verdict; None where no dose helps."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the edit was found, as it stands in the edit."""
    progress: Path | None = None
    """Folder that an interrupted run would go on from; removed once the result is saved."""

    @property
    def edit(self) -> Edit | None:
        """The components and their factors; None where no dose helps."""
        return self.card.edit if self.card else None

    @property
    def gate_met(self) -> bool:
        """Whether everything was shown that the budgets, or the policy, ask for."""
        return self.card is not None and self.card.passed

    def bound(self, folder: str | Path, name: str | None = None) -> "Correction":
        """Tie the edit to the checkpoint it was made for, so that it can be saved and applied.

        `correct_model` has done so where the model's folder is known.

        Args:
            folder: The checkpoint.
            name: What a human calls it; what the model was called if None.

        Raises:
            ExciseError: No dose helps, or as `bind`.
        """
        card = self._card()
        name = name or card.before.model
        edit = bind(card.edit, folder, name, self.recipe, card.evidence(), card.after.seen)
        return replace(self, card=replace(card, edit=edit))

    @contextmanager
    def applied(self, model: "PreTrainedModel | Loaded") -> Iterator[Any]:
        """Have a model corrected for the length of a `with` block; undone exactly, always.

        Raises:
            ExciseError: No dose helps, or as `Edit.applied`.
        """
        live: Any = model.model if isinstance(model, Loaded) else model
        with self._card().edit.applied(live):
            yield live

    def save_pretrained(
        self, path: str | Path, overwrite: bool = False, show_text: bool = False
    ) -> None:
        """Write the edit with its report card, all under one seal, whole or not at all.

        Args:
            path: The folder.
            overwrite: Whether an edit that is there may be replaced.
            show_text: Whether the card's page shows what the models wrote; it may offend.

        Raises:
            ExciseError: No dose helps, the model's checkpoint is not known, or the path is taken
                or cannot be written.
        """
        card = self._card()
        if "base" not in card.edit.config:
            raise ExciseError(
                f"the weights of {card.before.model} lie in no folder that is known, so its edit "
                "fits none: save the model, and call bound(FOLDER) before save_pretrained"
            )
        parts = {
            "report.json": json_text(card_json(card), indent=2) + "\n",
            "report.md": card_markdown(card),
            "report.html": card_page(card, show_text),
            "junit.xml": junit(card.report.gates),
        }
        files = {name: text.encode() for name, text in parts.items()}
        replace(card.edit, files={**card.edit.files, **files}).save_pretrained(path, overwrite)
        remove_progress(self.progress)

    def __str__(self) -> str:
        if self.card is None:
            return f"no dose of {len(self.dose.doses)} helps: {self.why_not}"
        return f"{headline(self.card)} Gate {'met' if self.gate_met else 'NOT met'}."

    @property
    def why_not(self) -> str:
        """What to do where no dose helps."""
        return (
            f"none keeps perplexity within {100 * self.dose.budget:g} % and removes anything: give "
            "smaller `sizes`, a `factors` nearer 1, or a larger budget in `budgets`"
        )

    def _repr_html_(self) -> str:
        """Draw the report card in a notebook."""
        if self.card is None:
            return f"<p>{escape(str(self))}</p>"
        framed = escape(card_page(self.card), quote=True)
        return f'<iframe srcdoc="{framed}" style="width:100%;height:40em;border:0"></iframe>'

    def _card(self) -> ReportCard:
        if self.card is None:
            raise ExciseError(f"there is no edit, as no dose helps: {self.why_not}")
        return self.card
