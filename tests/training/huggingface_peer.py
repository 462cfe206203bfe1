"""What one version of transformers makes of folders; run by test_huggingface.py as a process.

    python huggingface_peer.py FOLDER

FOLDER/in holds Hugging Face folders and FOLDER/input.pt pixels and masks, those of
NAME or those of all others. What the model of FOLDER/in/NAME answers goes to FOLDER/answers.pt, and
what its `save_pretrained` writes to FOLDER/saved/NAME. FOLDER/saved/own-NAME are models that the
library itself made, with answers too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

KINDS = {
    "pretraining": transformers.VideoMAEForPreTraining,
    "classifier": transformers.VideoMAEForVideoClassification,
}


def answer(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.eval()
    with torch.no_grad():
        if isinstance(model, KINDS["pretraining"]):
            output = model(given["pixels"], given["mask"])
            return {"logits": output.logits, "loss": output.loss}
        return {"logits": model(given["pixels"]).logits}


def main(folder: Path) -> None:
    transformers.logging.set_verbosity_error()
    inputs = torch.load(folder / "input.pt", weights_only=True)
    answers: dict[str, Any] = {"version": transformers.__version__}
    for path in sorted((folder / "in").iterdir()):
        kind = KINDS[path.name.partition("-")[0]]
        given = inputs.get(path.name, inputs)
        model, report = kind.from_pretrained(path, output_loading_info=True)
        answers[path.name] = answer(model, given) | {
            key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys")
        }
        answers[path.name]["mismatched"] = len(report["mismatched_keys"])
        model.save_pretrained(folder / "saved" / path.name)
        if path.name in KINDS:
            torch.manual_seed(5)
            own = kind(model.config)
            for parameter in own.parameters():  # norms and biases that are not 1 and 0
                parameter.data += 0.2 * torch.randn_like(parameter)
            answers[f"own-{path.name}"] = answer(own, given)
            own.save_pretrained(folder / "saved" / f"own-{path.name}")
    torch.save(answers, folder / "answers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
