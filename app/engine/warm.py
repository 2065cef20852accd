"""What outlives a loaded model in host memory, so that the same model starts faster the next time."""

from dataclasses import dataclass, field
from pathlib import Path

from app.engine import memory
from app.engine.cost import StepTimeModel
from app.engine.loader import DecoderWeights
from app.engine.runner import ModelRunner
from app.engine.tokenizer import Tokenizer, has_tokenizer


@dataclass(slots=True)
class Warm:
    """weights: of a GPU's model that sleeps; on a CPU their files are mapped again, which costs no memory meanwhile.

    cost: what was learned of step times.  folder, tokenizer: as the model was loaded or prepared last.
    """

    folder: Path | None = None
    tokenizer: Tokenizer | None = None
    weights: DecoderWeights | None = None
    cost: StepTimeModel = field(default_factory=StepTimeModel)

    def tokenizer_of(self, folder: Path) -> Tokenizer | None:
        """Read once. Raises ValueError as Tokenizer()."""
        if folder != self.folder:
            self.folder, self.tokenizer = folder, Tokenizer(folder) if has_tokenizer(folder) else None
        return self.tokenizer

    def put_away(self, runner: ModelRunner) -> None:
        """Before the runner's memory is given back for a while."""
        if runner.device.torch.type == "cuda":
            self.weights = memory.to_host(runner.decoder.weights)
