"""Several measures of one grid of tiles, and the weighted mean of them that decides.

Covers: which measures are computed together, what they need together, their mean.
Does not cover: the measures (`dpipe.kernels.measures`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpipe.device.arrays import Array
from dpipe.errors import InputError
from dpipe.kernels.measure import Measure, Scale, Settling
from dpipe.kernels.measures import MEASURES


@dataclass(frozen=True)
class Fusion:
    """Measures of one tile grid, and the weighted mean of them that decides.

    Attributes
    ----------
    weights
        (name, weight) of each measure, by name. A measure of weight 0 is computed and has a
        matrix, but no say.

    Examples
    --------
    >>> fusion = Fusion.of({"rdc": 0.5, "hsic": 0.5})
    >>> fusion.name, fusion.title, fusion.functions
    ('hsic+rdc', 'HSIC + RDC', 10)
    """

    weights: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Fusion:
        """The fusion that ``--weights`` asks for.

        Raises
        ------
        InputError
            When a name is no measure, or none that can be fused.
        """
        fusible = [
            name
            for name, measure in MEASURES.items()
            if measure.public and measure.settling is Settling.FLOAT64
        ]
        for name in weights:
            if name not in fusible:
                raise InputError(
                    f"--weights takes weights of {', '.join(fusible)}, not of {name!r}."
                )
        return cls(tuple(sorted(weights.items())))

    @classmethod
    def single(cls, name: str) -> Fusion:
        """A measure by itself, of any kind."""
        return cls(((name, 1.0),))

    @property
    def names(self) -> tuple[str, ...]:
        """The measures' names."""
        return tuple(name for name, _ in self.weights)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures themselves."""
        return tuple(MEASURES[name] for name in self.names)

    @property
    def functions(self) -> int:
        """K of the widest measure."""
        return max(measure.functions for measure in self.measures)

    def functions_for(self, parameters: Mapping[str, Any]) -> int:
        """The same where parameters may ask for more.

        Examples
        --------
        >>> Fusion.single("rdc").functions_for({"rdc_degree": 11})
        11
        """
        asked = (parameters.get(measure.widened_by or "") or 0 for measure in self.measures)
        return max(self.functions, *asked)

    @property
    def scale(self) -> Scale:
        """What the functions of each column are."""
        return self.measures[0].scale

    @property
    def needs_marginals(self) -> bool:
        """Whether the columns' marginal moments come first: whitening needs them too."""
        return self.functions > 1 or any(measure.needs_marginals for measure in self.measures)

    @property
    def needs_distances(self) -> bool:
        """Whether the marginals hold distances."""
        return any(measure.needs_distances for measure in self.measures)

    @property
    def settling(self) -> Settling:
        """How pairs in doubt are settled: one way for all, as `of` sees to."""
        return self.measures[0].settling

    @property
    def parameters(self) -> tuple[str, ...]:
        """The options that its measures read."""
        return tuple(dict.fromkeys(name for each in self.measures for name in each.parameters))

    @property
    def singles(self) -> tuple[Measure, ...]:
        """The measures that are not the mean itself."""
        return tuple(measure for measure in self.measures if measure.name != self.name)

    @property
    def deciding(self) -> tuple[Measure, ...]:
        """The measures that have a say."""
        return tuple(MEASURES[name] for name, weight in self.weights if weight > 0)

    @property
    def name(self) -> str:
        """What the mean is called in the decisions."""
        return "+".join(measure.name for measure in self.deciding)

    @property
    def title(self) -> str:
        """The same for a reader."""
        return " + ".join(measure.title for measure in self.deciding)

    @property
    def symbol(self) -> str:
        """What stands before one of its values."""
        return "+".join(measure.symbol for measure in self.deciding)

    @property
    def signed(self) -> bool:
        """Whether the mean tells falling from rising."""
        return all(measure.signed for measure in self.deciding)

    def screen(self, threshold: float) -> tuple[Fusion, float] | None:
        """A cheaper measure, and what it reaches wherever the mean reaches a threshold.

        None where no measure has a bound, or one so light that it need not reach anything.

        Examples
        --------
        >>> screen, least = Fusion.of({"rdc": 0.5, "hsic": 0.5}).screen(0.9)
        >>> screen.name, round(least, 9)
        ('hsic_bound', 0.8)
        """
        total = sum(weight for _, weight in self.weights)
        for measure in self.deciding:
            # All others are at most 1.
            least = 1 - (1 - threshold) * total / dict(self.weights)[measure.name]
            if measure.bound is not None and least > 0:
                return Fusion.single(measure.bound), least
        return None

    def mean(self, values: Mapping[str, Array]) -> Array:
        """The weighted mean of the measures' values."""
        weighted = [weight * values[name] for name, weight in self.weights if weight > 0]
        return sum(weighted) / sum(weight for _, weight in self.weights)
