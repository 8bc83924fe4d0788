"""Every variant of the edit, as a formula: what it must change and what it must leave."""

import pytest
import torch
from holdfast.config.values import WITHOUT_STRENGTH
from holdfast.errors import HoldfastError
from holdfast.methods.aird import VARIANTS, rank_one
from holdfast.refusal.interventions import component, random_unit


def without(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return x - component(x, r)


class TestAIRD:
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(1))
    dense = torch.randn(8, 30, generator=torch.Generator().manual_seed(2))
    r = random_unit(torch.zeros(8), 3)
    own = random_unit(torch.zeros(8), 4)
    inputs = torch.randn(40, 30, generator=torch.Generator().manual_seed(5)) + 1.0

    def edit(self, variant: str, alpha: float = 2.0) -> torch.Tensor:
        made = rank_one(
            variant,
            self.weight,
            self.r,
            dense_weight=self.dense,
            own_direction=self.own,
            harmless_inputs=self.inputs,
        )
        return (made if variant in WITHOUT_STRENGTH else made.scaled(alpha)).applied(self.weight)

    def test_amplify_scales_what_is_written_along_the_direction(self) -> None:
        after = self.edit("amplify", 2.0)
        assert torch.allclose(self.r @ after, 3 * (self.r @ self.weight), atol=1e-5)
        assert torch.allclose(without(after.T, self.r), without(self.weight.T, self.r), atol=1e-5)

    def test_restore_gives_exactly_the_dense_projection(self) -> None:
        after = self.edit("restore")
        assert torch.allclose(self.r @ after, self.r @ self.dense, atol=1e-6)
        assert torch.allclose(without(after.T, self.r), without(self.weight.T, self.r), atol=1e-6)

    def test_realign_writes_along_the_dense_direction_instead(self) -> None:
        after = self.edit("realign")
        assert torch.allclose(
            after - self.weight, torch.outer(self.r - self.own, self.own @ self.weight), atol=1e-5
        )

    def test_centred_leaves_the_mean_harmless_output_unchanged(self) -> None:
        m = self.inputs.mean(0)
        assert torch.allclose(self.edit("centred", 6.0) @ m, self.weight @ m, atol=1e-4)
        assert not torch.allclose(self.edit("centred", 6.0), self.weight, atol=0.1)

    def test_null_space_leaves_the_principal_harmless_inputs_unchanged(self) -> None:
        leading = torch.linalg.svd(self.inputs, full_matrices=False).Vh[0]
        after = self.edit("null-space", 6.0)
        assert torch.allclose(after @ leading, self.weight @ leading, atol=1e-4)
        assert not torch.allclose(after, self.weight, atol=0.1)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_is_rank_one(self, variant: str) -> None:
        assert torch.linalg.matrix_rank(self.edit(variant) - self.weight, rtol=1e-4) == 1

    def test_unknown_variant_is_one_line(self) -> None:
        with pytest.raises(HoldfastError, match="unknown variant 'boost'"):
            rank_one("boost", self.weight, self.r)
