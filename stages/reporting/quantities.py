"""What is measured: what it is called, how it is shown, and what it is compared with."""

from dataclasses import dataclass

from .text import number

FIRST, SECOND = "linear", "knn"  # the measure that orders the table, and the one that asks least of the features
DEPTH, FINETUNED = "linear_depth", "finetune"
MEASURES = {  # accuracy on test, percent
    FIRST: "linear probe",
    DEPTH: "linear probe, chosen depth",
    SECOND: "k-NN",
    FINETUNED: "fine-tuned",
    "low_label": "1 % of labels",
    "transfer": "transfer",
}


@dataclass(frozen=True)
class Quantity:
    """A number other than accuracy: its heading, the digits to show after multiplying by `scale`."""

    label: str
    digits: int
    scale: float = 1.0
    on_cpu: str = ""  # the heading where every run was on a CPU, if it is another

    def shown(self, value: float | None) -> str:
        return number(None if value is None else value * self.scale, self.digits)


HEALTH = {
    "effective_rank": Quantity("effective rank", 1),
    "lidar": Quantity("LiDAR", 1),
    "alignment": Quantity("alignment", 2),
    "uniformity": Quantity("uniformity", 2),
    "dead": Quantity("dead, %", 1),
    "clustering_nmi": Quantity("clusters, NMI", 1),
}
COST = {
    "seconds": Quantity("seconds", 0, on_cpu="CPU-seconds"),  # there those of all threads
    "samples_per_second": Quantity("samples/s", 0, on_cpu="samples/CPU-second"),
    "encoder_parameters": Quantity("parameters, M", 2, 1e-6),
    "discarded_parameters": Quantity("thrown away, M", 2, 1e-6),
    "multiply_adds": Quantity("multiply-adds a sample, M", 1, 1e-6),
    "peak_memory_mb": Quantity("memory, MB", 0),
}


@dataclass(frozen=True)
class Predictor:
    """What may order methods as FIRST does, at less cost or without labels; `sign` is -1 where less is better."""

    label: str
    sign: int = 1
    cheap: bool = True  # cheaper than FIRST itself

    @property
    def better(self) -> str:
        return "higher" if self.sign > 0 else "lower"


# Losses are not here: those of different objectives do not compare. The bound is what contrastive ones have in common.
PREDICTORS = {
    SECOND: Predictor("k-NN"),
    "effective_rank": Predictor("effective rank"),
    "lidar": Predictor("LiDAR"),
    "alignment": Predictor("alignment", -1),
    "uniformity": Predictor("uniformity", -1),
    "spread": Predictor("spread"),
    "dead": Predictor("share of dead features", -1),
    "held_out_information": Predictor("bound on mutual information"),
    "clustering_nmi": Predictor("NMI of clusters"),
    "low_label": Predictor("probe with 1 % of labels", cheap=False),
    FINETUNED: Predictor("fine-tuned", cheap=False),
    "transfer": Predictor("transfer", cheap=False),
}
