"""A training run: from settings to files. Every step is a function of the settings, the weights and the place in the data."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.encoders import HIDDEN
from ipadapter_core.files.family import Info, identify

from . import output
from .adapter import Adapter, attentions_of, check_encoder, check_name, merge_lora, new_checkpoint, read_adapter, shapes_of
from .base import PRECISION, Base
from .config import FREE, Settings
from .data import Need, Places, Precomputed, Sample, Source, Stream, is_precomputed, open_source
from .encoders import Encoders, load_image_encoder, load_vae
from .loss import Features, draw, training_loss
from .precompute import FEATURES
from .validation import Validation, shown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a run came to; loss: the mean of the last steps, file: the last adapter that was written."""

    step: int
    loss: float
    position: int
    skipped: int
    figures: Mapping[str, float]
    file: Path | None
    stopped: bool


def rate(settings: Settings, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Run:
    """Models, data, optimizer and place of one run."""

    def __init__(self, settings: Settings):
        self.settings = settings
        try:
            self.accelerator = Accelerator(
                mixed_precision=settings.mixed_precision,
                gradient_accumulation_steps=settings.accumulation,
                log_with=settings.tracker or None,
                project_dir=settings.out,
            )
        except (ValueError, ImportError) as error:
            raise IPAdapterError(f"accelerate cannot work with these settings: {error}") from error
        self.device, self.dtype = self.accelerator.device, PRECISION[settings.mixed_precision]
        self.step, self.position, self.figures = 0, 0, {}
        self.skipped: set[str] = set()
        self.losses: list[float] = []
        state = self._saved()
        self.base = Base(settings, self.device, self.dtype, settings.checkpointing)
        adapter, self.info = self._adapter()
        self.source, self.encoders, self.none = self._data()
        self.named = dict(adapter.named_parameters())
        self.lora = adapter.lora
        optimizer = torch.optim.AdamW(self.named.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.adapter, self.optimizer = self.accelerator.prepare(adapter, optimizer)
        self.ema = {key: value.detach().clone() for key, value in self.named.items()} if settings.ema else {}
        if state:
            self._restore(state)
        self.validation = self._validation()

    def _saved(self) -> output.State | None:
        path = output.newest_state(self.settings.out, self.settings.name)
        if path is None:
            if self.settings.resume:
                log.info("there is no state in %s: the run starts from the beginning", self.settings.out)
            return None
        if not self.settings.resume:
            raise IPAdapterError(f"{path} is the state of an earlier run: add --resume to go on, or choose another --name or --out.")
        state = output.read_state(path)
        now, then = asdict(self.settings), state.told["settings"]
        changed = [f"{key} was {then.get(key)} and is {now[key]}" for key in now if key not in FREE and then.get(key) != now[key]]
        if changed:
            raise IPAdapterError(f"{path.name} was made with other settings ({'; '.join(changed)}): use the same, or another --name.")
        return state

    def _adapter(self) -> tuple[Adapter, Info]:
        settings = self.settings
        file = output.adapter_file(settings.out, settings.name, settings.steps).name
        if settings.continue_from:
            checkpoint, info = read_adapter(settings.continue_from, self.base.layout)
            if settings.family not in ("", info.family):
                raise IPAdapterError(f"--family is {settings.family} and {settings.continue_from} is {info.label}: leave --family out.")
            merge_lora(self.base.unet, self.base.layout, checkpoint)
        else:
            family = settings.family or "standard"
            attentions = attentions_of(self.base.unet, self.base.layout)
            width = self._width(FEATURES[family])
            checkpoint = new_checkpoint(family, self.base.layout, attentions, width, settings.plus_width, settings.seed)
            info = identify(shapes_of(checkpoint), "faceid-plusv2" if family == "faceid-plus-v2" else file)
            if info.family != family:
                raise IPAdapterError(f"A {family} adapter on an encoder {width} wide has the shapes of {info.label}: use another encoder.")
        return Adapter(checkpoint, info), check_name(checkpoint, info, file)

    def _width(self, feature: str) -> int:
        """Of what the image encoder gives, or of what was precomputed."""
        if not feature:
            return 0
        if is_precomputed(self.settings.data):
            told = Precomputed(Path(self.settings.data)).told
            if told["feature"] != feature:
                raise IPAdapterError(f"{self.settings.data} has {told['feature'] or 'no image features'}, and this family takes {feature}.")
            return int(told["width"])
        config = load_image_encoder(self.settings).config
        return config.hidden_size if feature == HIDDEN else config.projection_dim

    def _data(self) -> tuple[Source, Encoders | None, Features]:
        settings, info = self.settings, self.info
        if is_precomputed(settings.data):
            source = Precomputed(Path(settings.data))
            told, wanted = source.told, info.encoder.feature if info.encoder else ""
            width = info.encoder.width if info.encoder else 0
            if told["layout"] != self.base.layout:
                raise IPAdapterError(f"{settings.data} was precomputed for {told['layout']} and the base model is {self.base.layout}.")
            if wanted and (told["feature"], int(told["width"])) != (wanted, width):
                raise IPAdapterError(
                    f"{info.label} takes {wanted} {width} wide, and {settings.data} has {told['feature'] or 'none'} {told['width']} wide: "
                    "run precompute with the encoder that fits the adapter."
                )
            if info.face and told["face"] != "True":
                raise IPAdapterError(f"{settings.data} has no face embeddings: run precompute with --family {info.family}.")
            return source, None, {name: value.to(self.device) for name, value in source.none.items()}
        encoders = Encoders(settings, self.base.layout, info.encoder, self.device, self.dtype)
        if encoders.encoder is not None:
            config = encoders.encoder.config
            check_encoder(info, config.projection_dim, config.hidden_size, settings.image_encoder)
        return open_source(settings.data, self._need(encoders)), encoders, encoders.none()

    def _need(self, encoders: Encoders) -> Need:
        size = encoders.encoder.config.image_size if encoders.encoder is not None else 0
        unit = self.info.family != "portrait-unnorm"
        return Need(self.settings.resolution, self.settings.crop, size, self.info.face, unit)

    def _validation(self) -> Validation | None:
        settings, encoders = self.settings, self.encoders
        if not settings.validate_every or not self.accelerator.is_main_process:
            return None
        source = self.source
        if settings.validation:
            encoders = encoders or Encoders(settings, self.base.layout, self.info.encoder, self.device, self.dtype)
            source = open_source(settings.validation, self._need(encoders))
        stream = Stream(source, settings.seed, shuffle=False)
        samples = [self._sample(*stream[i]) for i in range(min(settings.validation_count, len(source)))]
        features = self.features(samples, encoders)
        resident = self.encoders
        vae = (lambda: resident.vae) if resident else (lambda: load_vae(settings, self.device))
        encoder: Callable[[], Any] = lambda: None  # noqa: E731
        if settings.image_encoder:
            held = resident.encoder if resident else None
            encoder = lambda: held or load_image_encoder(settings, self.device, self.dtype)  # noqa: E731
        references = shown(samples) if "pixels" in samples[0] else None
        return Validation(self.base, features, self.none, references, settings, vae, encoder)

    def _sample(self, found: Sample | IPAdapterError, skipped: list[str]) -> Sample:
        for problem in skipped:
            if problem not in self.skipped:
                log.warning("skipped: %s", problem)
                self.skipped.add(problem)
        if isinstance(found, IPAdapterError):
            raise found
        return found

    def features(self, samples: list[Sample], encoders: Encoders | None) -> Features:
        """A batch on the device; encoded here where it was not precomputed."""
        if encoders and "latents" not in samples[0]:
            return encoders.encode(samples)
        return {name: torch.stack([sample[name] for sample in samples]).to(self.device) for name in samples[0]}

    def batches(self) -> Iterator[tuple[Features, list[int]]]:
        """This process's share of the stream from the run's position on, without end."""
        settings, accelerator = self.settings, self.accelerator
        places = Places(self.position, settings.batch_size, accelerator.process_index, accelerator.num_processes)
        loader = DataLoader(
            Stream(self.source, settings.seed), batch_sampler=places, collate_fn=list,
            num_workers=settings.workers, worker_init_fn=_leave_interrupts_to_the_main_process,
        )  # fmt: skip
        for batch, numbers in zip(loader, places, strict=False):
            yield self.features([self._sample(*one) for one in batch], self.encoders), numbers

    def backward(self, features: Features, places: list[int], stop: bool = False) -> tuple[float, bool]:
        """The mean loss of all processes, its gradients added to the weights', and whether any process was told to stop."""
        draws = draw(self.settings.seed, places, features["latents"].shape[1:], self.base.scheduler.config["num_train_timesteps"])

        def predict(noisy: Tensor, timesteps: Tensor, features: Features) -> Tensor:
            return self.base.predict(self.adapter(features), noisy, timesteps, features)

        loss = training_loss(predict, self.base.scheduler, features, self.none, draws, self.settings)
        told = torch.stack([loss.detach().float(), loss.new_tensor(float(stop), dtype=torch.float32)])
        mean, stopped = self.accelerator.reduce(told, "mean").tolist()  # type: ignore[union-attr]
        if not math.isfinite(mean):
            raise self._diverged("The loss is not a number")
        self.accelerator.backward(loss)
        return mean, stopped > 0

    def _diverged(self, what: str) -> IPAdapterError:
        last = output.newest_adapter(self.settings.out, self.settings.name)
        kept = f"{last.name} is the last good file" if last else "no file was written yet"
        return IPAdapterError(f"{what} at step {self.step + 1}; {kept}: go on from it with a lower --learning-rate or another precision.")

    def update(self) -> None:
        """One optimizer step with the gradients that are there."""
        settings, accelerator = self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = rate(settings, self.step)
        norm = accelerator.clip_grad_norm_(self.adapter.parameters(), settings.max_grad_norm or math.inf)
        if accelerator.scaler is None and norm is not None and not math.isfinite(norm):
            raise self._diverged("The gradients are not numbers")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema:
            decay = min(settings.ema, (1 + self.step) / (10 + self.step))  # the mean follows closely at first
            with torch.no_grad():
                for key, value in self.named.items():
                    self.ema[key].lerp_(value, 1 - decay)

    def advance(self, batches: Iterator[tuple[Features, list[int]]], stop: bool = False) -> tuple[float, bool]:
        """One step: its mean loss, and whether any process was told to stop."""
        total, stopped = 0.0, False
        for _ in range(self.settings.accumulation):
            features, places = next(batches)
            with self.accelerator.accumulate(self.adapter):
                loss, told = self.backward(features, places, stop)
            total, stopped = total + loss / self.settings.accumulation, stopped or told
            self.position += self.settings.batch_size * self.accelerator.num_processes
        self.update()
        self.losses = [*self.losses[-99:], total]
        return total, stopped

    def weights(self) -> dict[str, Tensor]:
        """What is written: the running mean where there is one."""
        return self.ema or {key: value.detach() for key, value in self.named.items()}

    def save(self) -> Path | None:
        """Writes adapter and state (in the main process alone)."""
        settings = self.settings
        if not self.accelerator.is_main_process:
            return None
        encoder = self.info.encoder
        metadata = {
            "family": self.info.family, "base": self.base.layout, "base_model": Path(settings.base).name,
            "encoder": f"{encoder.name}, {encoder.feature} {encoder.width} wide" if encoder else "face embeddings",
            "prediction_type": str(self.base.scheduler.config["prediction_type"]), "steps": str(self.step),
            "samples_seen": str(self.position), "data_count": str(len(self.source)), "settings": json.dumps(asdict(settings)),
        }  # fmt: skip
        dtype = getattr(torch, settings.save_dtype)
        path = output.write_adapter(settings.out, settings.name, self.step, {**self.weights(), **self.lora}, dtype, metadata)
        tensors: dict[str, Tensor] = {f"weights.{key}": value for key, value in self.named.items()}
        tensors |= {f"ema.{key}": value for key, value in self.ema.items()}
        for key, value in self.named.items():
            tensors |= {f"adam.{part}.{key}": kept for part, kept in self.optimizer.state[value].items()}
        told = {"step": self.step, "position": self.position, "settings": asdict(settings), "samples": len(self.source)}
        if self.accelerator.scaler is not None:
            told["scaler"] = self.accelerator.scaler.state_dict()
        output.write_state(settings.out, settings.name, output.State(tensors, told))
        return path

    @torch.no_grad()
    def _restore(self, state: output.State) -> None:
        if state.told["samples"] != len(self.source):
            raise IPAdapterError(
                f"{self.source.name} has {len(self.source)} samples and had {state.told['samples']} when the run was stopped: "
                "go on with the same data, or start anew with --continue-from."
            )
        self.step, self.position = state.told["step"], state.told["position"]
        for key, value in self.named.items():
            if f"weights.{key}" not in state.tensors or state.tensors[f"weights.{key}"].shape != value.shape:
                raise IPAdapterError(f"The state in {self.settings.out} is another adapter's ({key}): choose another --name.")
            value.copy_(state.tensors[f"weights.{key}"])
            adam = {part: state.tensors[f"adam.{part}.{key}"] for part in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[value] = {part: kept if part == "step" else kept.to(value) for part, kept in adam.items()}
            if self.ema:
                self.ema[key].copy_(state.tensors[f"ema.{key}"])
        if self.accelerator.scaler is not None and "scaler" in state.told:
            self.accelerator.scaler.load_state_dict(state.told["scaler"])

    def validate(self) -> None:
        """Draws the grid of this step and logs its figures."""
        if self.validation is None:
            return
        adapter, weights = self.accelerator.unwrap_model(self.adapter), self.weights()
        path = Path(self.settings.out) / f"{self.settings.name}_{self.step}.png"
        self.figures = self.validation.run(lambda features: torch.func.functional_call(adapter, weights, (features,)), path)
        told = "; ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in self.figures.items())
        log.info("step %d: %s%s", self.step, path, f"; {told}" if told else "")
        self.accelerator.log(self.figures, step=self.step)


def train(settings: Settings, seconds: float = math.inf) -> Summary:
    """Trains until the steps are done, `seconds` are over, or Ctrl+C; files are written on the way and at the end.

    Raises IPAdapterError, a sentence, for settings, data or models that cannot be used, a full disk, or a loss that is not a number.
    """
    try:
        run = Run(settings)
        with _interrupts() as asked, logging_redirect_tqdm():
            return _loop(run, asked, time.monotonic() + seconds)
    finally:
        AcceleratorState._reset_state(True)  # a second run in this process may choose another precision


def _loop(run: Run, asked: threading.Event, end: float) -> Summary:
    settings, accelerator = run.settings, run.accelerator
    if settings.tracker:
        accelerator.init_trackers(settings.name, config=asdict(settings))
    log.info("%s on %s, %d samples, step %d of %d", run.info.label, settings.base, len(run.source), run.step, settings.steps)
    batches, stopped, saved = run.batches(), False, run.step
    file = output.newest_adapter(settings.out, settings.name)
    each_step = settings.batch_size * settings.accumulation * accelerator.num_processes
    with tqdm(total=settings.steps, initial=run.step, unit="step", disable=not accelerator.is_main_process) as bar:
        started, first = time.monotonic(), run.step
        while run.step < settings.steps and not stopped:
            loss, stopped = run.advance(batches, asked.is_set() or time.monotonic() > end)
            speed = (run.step - first) * each_step / max(1e-9, time.monotonic() - started)
            bar.set_postfix_str(f"loss {sum(run.losses) / len(run.losses):.4f}, {speed:.2f} samples/s", refresh=False)
            bar.update()
            if settings.tracker:
                accelerator.log({"loss": loss, "learning_rate": rate(settings, run.step - 1)}, step=run.step)
            if run.step % settings.save_every == 0:
                file, saved = run.save(), run.step
            if settings.validate_every and run.step % settings.validate_every == 0:
                run.validate()
    if saved != run.step:
        file = run.save()
    accelerator.end_training()
    stopped = asked.is_set() and run.step < settings.steps
    log.info("%s at step %d: %s", "stopped, go on with --resume" if stopped else "done", run.step, file)
    if run.skipped:
        log.info("%d unreadable pictures were skipped", len(run.skipped))
    mean = sum(run.losses) / len(run.losses) if run.losses else math.nan
    return Summary(run.step, mean, run.position, len(run.skipped), run.figures, file, stopped)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by the first Ctrl+C (or SIGTERM), after which the step under way is finished and saved; the second stops at once."""
    asked, kept = threading.Event(), {}

    def ask(number: int, _: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        log.info("stopping after this step (again: at once)")

    if threading.current_thread() is threading.main_thread():
        kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _leave_interrupts_to_the_main_process(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
