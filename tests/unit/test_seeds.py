"""Derived seeds: the same again, all different, and noise that is not correlated with the noise of its neighbours."""

import torch

from guided_synthesis.guidance.seeds import derived_seed


def test_derived_seeds_repeat_differ_and_fit_a_generator():
    seeds = [derived_seed(seed, index) for seed in range(50) for index in range(50)]
    assert seeds == [derived_seed(seed, index) for seed in range(50) for index in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in [*seeds, derived_seed(2**64 - 1, 1)])


def test_noise_of_derived_seeds_is_white_across_them():
    noise = torch.stack(
        [
            torch.randn(4096, generator=torch.Generator().manual_seed(derived_seed(7, index)))
            for index in range(30)
        ]
    )
    correlation = torch.corrcoef(noise).fill_diagonal_(0)
    assert correlation.abs().max() < 0.08  # five standard errors of 4096 values
