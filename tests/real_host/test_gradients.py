"""Gradients through the host's own networks, loaded by the host's own loader, inside inference mode as nodes
are.

Every gradient is compared with central differences of a plain float64 copy of the network.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import mse_loss

from real_host.models import as_v_prediction

SIGMA = 3.0


@pytest.fixture(scope="module")
def gradients(host):
    from guided_synthesis.nodes.host import gradients

    return gradients


@pytest.fixture(scope="module")
def text(tiny):
    """Return the text condition (1, T, D) of a prompt, an inference tensor as nodes pass it."""
    with torch.inference_mode():
        return tiny[1].encode_from_tokens(tiny[1].tokenize("a photo of a fox in a green field"))


@pytest.fixture(scope="module")
def kl_vae(host):
    """Return the host's VAE with a small AutoencoderKL (SD's class, with attention), random weights."""
    widths = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
    widths |= {"ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    return _kl_vae(host, widths, torch.float32)


def _kl_vae(host, widths, dtype):
    params = {"ddconfig": widths, "embed_dim": 4}
    network = host.comfy.ldm.models.autoencoder.AutoencoderKL(**copy.deepcopy(params))
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator) / max(1, value[0].numel()) ** 0.5
        state[key] = 1 + 0.1 * noise if value.ndim == 1 and key.endswith("weight") else noise
    with torch.inference_mode():
        return host.comfy.sd.VAE(sd=state, config={"params": params}, dtype=dtype)


def _double(network):
    """Return a plain float64 copy of `network`: ordinary tensors, no gradients of its own."""
    with torch.inference_mode(False):
        return copy.deepcopy(network).double().requires_grad_(False)


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _agrees(function, at, gradient, tolerance=1e-3, step=1e-6):
    """Compare `gradient` with central differences of the float64 `function` at `at`, in three directions."""
    with torch.inference_mode(False), torch.no_grad():
        at, gradient = at.detach().clone().double(), gradient.clone().double()
        for seed in range(3):
            direction = _noise(*at.shape, seed=seed).double()
            direction = direction + gradient / gradient.std()  # else nearly orthogonal to it
            measured = (function(at + step * direction) - function(at - step * direction)) / (2 * step)
            given = (gradient * direction).sum()
            assert given.item() == pytest.approx(measured.item(), rel=tolerance)


def _plain_denoise(model, x, sigma, context, velocity=False, **extra):
    """Return x0hat by the textbook, with a float64 copy of the UNet."""
    network = _double(model.model.diffusion_model)
    network.dtype = torch.float64
    plain = {"optimized_attention_override": lambda f, *a, **k: _softmax_attention(*a, **k)}
    with torch.inference_mode(False):
        time = model.model.model_sampling.timestep(torch.tensor([sigma])).float().expand(x.shape[0])
        scaled = x / (sigma**2 + 1) ** 0.5
        out = network(scaled, time, context=context, transformer_options=plain, **extra)
    if velocity:
        return x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5
    return x - sigma * out


def _softmax_attention(q, k, v, heads, **_):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def _gradient_of_denoise(gradients, model, x, text, wanted, **extra):
    """Return dL/d(wanted) for L = mean x0hat^2, computed as a node would: inside inference mode."""
    with torch.inference_mode():
        gradients.load([model], 0)
        with gradients.differentiable():
            leaves = {"x": x.clone(), "text": text.clone(), **{k: v.clone() for k, v in extra.items()}}
            leaves[wanted].requires_grad_()
            named = {k: v for k, v in leaves.items() if k not in ("x", "text")}
            x0 = gradients.denoise(
                model, leaves["x"], torch.full((x.shape[0],), SIGMA), leaves["text"], **named
            )
            return torch.autograd.grad(x0.square().mean(), leaves[wanted])[0]


def _sample(host, tiny, text, model=None):
    with torch.inference_mode():
        positive, latent = [[text, {}]], {"samples": torch.zeros(1, 4, 16, 16)}
        negative = [[torch.zeros_like(text), {}]]
        model = model or tiny[0]
        result = host.nodes.common_ksampler(model, 7, 3, 4.0, "euler", "normal", positive, negative, latent)
        return result[0]["samples"].clone()


def _traces(network):
    """Return what would differ if anything stayed patched: every module's attributes, every weight's bits."""
    attributes = [sorted(module.__dict__) for module in network.modules()]
    tensors = [(name, id(p), p.device, p.dtype, p.requires_grad) for name, p in network.named_parameters()]
    return attributes, tensors, [p.detach().clone() for p in network.parameters()]


def _same(before, after):
    return before[:2] == after[:2] and all(map(torch.equal, before[2], after[2]))


def test_the_weights_are_inference_tensors_and_plain_autograd_refuses_them(tiny, text):
    model, _, vae = tiny
    assert all(p.is_inference() for p in vae.first_stage_model.parameters())
    assert any(p.is_inference() for p in model.model.diffusion_model.parameters())
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        pytest.raises(RuntimeError, match="[Ii]nference tensors"),
    ):
        vae.first_stage_model.decode(torch.zeros(1, 4, 8, 8, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("wanted", ["x", "text"])
def test_the_gradient_through_the_diffusion_model_agrees_with_finite_differences(
    gradients, tiny, text, wanted
):
    x = SIGMA * _noise(2, 4, 16, 16)
    context = text.repeat(2, 1, 1)
    found = _gradient_of_denoise(gradients, tiny[0], x, context, wanted)

    def loss(at):
        inputs = {"x": x.double(), "text": context.clone().double(), wanted: at}
        return _plain_denoise(tiny[0], inputs["x"], SIGMA, inputs["text"]).square().mean()

    _agrees(loss, x if wanted == "x" else context, found)


def test_the_gradient_of_a_v_prediction_model_agrees_with_finite_differences(host, gradients, tiny, text):
    model = as_v_prediction(host, tiny[0])
    x = SIGMA * _noise(1, 4, 16, 16)
    found = _gradient_of_denoise(gradients, model, x, text, "x")
    context = text.clone().double()
    _agrees(lambda at: _plain_denoise(model, at, SIGMA, context, velocity=True).square().mean(), x, found)
    gradients.load([tiny[0]], 0)


def test_the_gradient_to_the_size_condition_of_an_sdxl_like_model_agrees_with_finite_differences(
    host, gradients, tiny, text
):
    config = tiny[0].model.model_config
    config = type(config)({**config.unet_config, "num_classes": "sequential", "adm_in_channels": 16})
    base, device = host.comfy.model_base.BaseModel(config), torch.device("cpu")
    with torch.inference_mode():
        for index, parameter in enumerate(base.parameters()):
            parameter.data = 0.05 * _noise(*parameter.shape, seed=index)
    model = host.comfy.model_patcher.ModelPatcher(base, device, device)
    x, y = SIGMA * _noise(1, 4, 8, 8), _noise(1, 16, seed=2)
    found = _gradient_of_denoise(gradients, model, x, text, "y", y=y)
    context = text.clone().double()
    _agrees(lambda at: _plain_denoise(model, x.double(), SIGMA, context, y=at).square().mean(), y, found)


@pytest.mark.parametrize("kind", ["taesd class", "kl class"])
def test_the_gradients_through_the_vae_agree_with_finite_differences(gradients, tiny, kl_vae, kind):
    vae = tiny[2] if kind == "taesd class" else kl_vae
    plain = _double(vae.first_stage_model)
    latent, image = 3 * _noise(1, 4, 8, 8), _noise(1, 3, 32, 32).sigmoid()
    goal, code = _noise(1, 3, 64, 64, seed=2).sigmoid(), _noise(1, 4, 4, 4, seed=3)
    with torch.inference_mode():
        gradients.load([vae.patcher], 0)
        with gradients.differentiable():
            z, picture = latent.clone().requires_grad_(), image.clone().requires_grad_()
            (by_decoding,) = torch.autograd.grad(mse_loss(gradients.decode(vae, z), goal), z)
            (by_encoding,) = torch.autograd.grad(mse_loss(gradients.encode(vae, picture), code), picture)
    _agrees(lambda at: mse_loss((plain.decode(at) + 1) / 2, goal.double()), latent, by_decoding)
    _agrees(lambda at: mse_loss(plain.encode(at * 2 - 1), code.double()), image, by_encoding)


def test_decoding_equals_the_hosts_own_but_is_not_clamped(gradients, tiny):
    vae, latent = tiny[2], 8 * _noise(2, 4, 8, 8)
    with torch.inference_mode():
        theirs = vae.decode(latent).movedim(-1, 1)
        with gradients.differentiable():
            ours = gradients.decode(vae, latent)
    assert ours.dtype == torch.float32 and (ours.min() < 0 or ours.max() > 1)
    assert torch.allclose(ours.clamp(0, 1), theirs, atol=1e-6)


def test_a_vae_whose_output_is_already_in_zero_to_one_is_not_shifted(gradients, tiny, monkeypatch):
    vae = copy.copy(tiny[2])
    vae.process_output = lambda image: image
    with torch.inference_mode(), gradients.differentiable():
        latent = _noise(1, 4, 4, 4)
        assert torch.equal(gradients.decode(vae, latent), vae.first_stage_model.decode(latent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_of_the_diffusion_model_give_the_gradient_of_their_values(
    host, gradients, tiny, text, dtype
):
    from tiny_sd.host_model import CHECKPOINT

    with torch.inference_mode():
        options = {"dtype": dtype}
        model = host.comfy.sd.load_checkpoint_guess_config(
            str(CHECKPOINT), model_options=options, output_vae=False
        )[0]
    assert {p.dtype for p in model.model.diffusion_model.parameters()} == {dtype}
    x = SIGMA * _noise(1, 4, 16, 16)
    found = _gradient_of_denoise(gradients, model, x, text, "x")
    context = text.clone().double()
    _agrees(lambda at: _plain_denoise(model, at, SIGMA, context).square().mean(), x, found, tolerance=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vae_gives_nearly_the_full_precision_gradient(host, gradients, tiny, dtype):
    with torch.inference_mode():
        state = {k: v.clone() for k, v in tiny[2].first_stage_model.state_dict().items()}
        half = host.comfy.sd.VAE(sd=state, dtype=dtype)
    found = []
    for vae in (tiny[2], half):
        with torch.inference_mode():
            gradients.load([vae.patcher], 0)
            with gradients.differentiable():
                z = (3 * _noise(1, 4, 8, 8)).requires_grad_()
                found += torch.autograd.grad(gradients.decode(vae, z).square().mean(), z)
    assert torch.cosine_similarity(found[0].flatten(), found[1].float().flatten(), dim=0) > 0.99


def test_lora_patches_count_in_a_low_memory_load_as_in_a_full_one(gradients, tiny, text):
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    x = SIGMA * _noise(1, 4, 16, 16)
    bare = _gradient_of_denoise(gradients, tiny[0], x, text, "x")
    patched = tiny[0].clone()
    shift = _noise(*tiny[0].get_model_object(key).shape)
    assert patched.add_patches({key: ("diff", (shift,))}) == [key]
    full = _gradient_of_denoise(gradients, patched, x, text, "x")
    patched.detach()
    with torch.inference_mode():
        patched.load(torch.device("cpu"), lowvram_model_memory=64)  # bytes: everything is streamed
        assert patched.lowvram_patch_counter() == 1
        with gradients.differentiable():
            leaf = x.clone().requires_grad_()
            x0 = gradients.denoise(patched, leaf, torch.full((1,), SIGMA), text)
            (streamed,) = torch.autograd.grad(x0.square().mean(), leaf)
        patched.detach()
    assert torch.allclose(full, streamed, atol=1e-7) and not torch.allclose(full, bare, rtol=0.01)
    assert torch.equal(_gradient_of_denoise(gradients, tiny[0], x, text, "x"), bare)


class _Streamed(torch.nn.Module):
    """A layer as newer hosts stream it: its weight passes through a buffer that the next layer overwrites."""

    buffer = torch.zeros(4, 4)

    def __init__(self, seed):
        super().__init__()
        self.weight = torch.nn.Parameter(_noise(4, 4, seed=seed), requires_grad=False)

    def forward(self, x):
        self.buffer.copy_(self.weight)
        return torch.nn.functional.linear(x, self.buffer.view(4, 4)).tanh()


def test_weights_that_the_host_streams_through_a_buffer_are_kept_for_the_backward_pass(
    gradients, monkeypatch
):
    from guided_synthesis.nodes.host import plain_tensors

    layers, x = [_Streamed(1), _Streamed(2), _Streamed(3)], _noise(2, 4)
    expected = x.clone().requires_grad_()
    out = expected
    for layer in layers:
        out = (out @ layer.weight.T).tanh()
    out.sum().backward()
    monkeypatch.setattr(plain_tensors, "_is_streamed", lambda t: t.is_leaf and not t.requires_grad)
    with torch.inference_mode(), gradients.differentiable():
        leaf = x.clone().requires_grad_()
        found = torch.autograd.grad(torch.nn.Sequential(*layers)(leaf).sum(), leaf)[0]
    assert torch.allclose(found, expected.grad, atol=1e-6)


def test_checkpointing_gives_equal_gradients_and_keeps_less(gradients, tiny, kl_vae, text):
    x, latent = SIGMA * _noise(1, 4, 16, 16), _noise(1, 4, 8, 8)
    sigma = torch.full((1,), SIGMA)
    calls = {
        "unet": (
            tiny[0],
            tiny[0].model.diffusion_model,
            x,
            lambda at: gradients.denoise(tiny[0], at, sigma, text),
        ),
        "taesd": (
            tiny[2].patcher,
            tiny[2].first_stage_model,
            latent,
            lambda at: gradients.decode(tiny[2], at),
        ),
        "kl": (kl_vae.patcher, kl_vae.first_stage_model, latent, lambda at: gradients.decode(kl_vae, at)),
    }
    for patcher, network, start, call in calls.values():
        with torch.inference_mode():
            gradients.load([patcher], 0)
            plain, kept = _gradient_and_bytes(gradients, start, call)
            with gradients.checkpointed(network):
                again, kept_less = _gradient_and_bytes(gradients, start, call)
        assert torch.allclose(plain, again, rtol=1e-4, atol=1e-7)
        assert kept_less < 0.7 * kept
        assert not any("forward" in module.__dict__ for module in network.modules())


def _gradient_and_bytes(gradients, start, call):
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with gradients.differentiable():
        leaf = start.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = call(leaf)
        return torch.autograd.grad(out.square().mean(), leaf)[0], sum(saved.values())


def test_checkpointing_repeats_a_block_with_the_options_it_had(gradients, tiny, text):
    """Look at what an attention patch sees: in the backward pass the same blocks as forwards."""
    model, seen = tiny[0].clone(), []

    def spy(q, k, v, extra_options):
        seen.append((extra_options["block"], extra_options["block_index"]))
        return q, k, v

    model.set_model_attn2_patch(spy)
    with torch.inference_mode():
        gradients.load([model], 0)
        with gradients.checkpointed(model.model.diffusion_model), gradients.differentiable():
            leaf = (SIGMA * _noise(1, 4, 16, 16)).requires_grad_()
            x0 = gradients.denoise(model, leaf, torch.full((1,), SIGMA), text)
            forwards = list(seen)
            torch.autograd.grad(x0.sum(), leaf)
    assert len(set(forwards)) == len(forwards) > 3
    assert sorted(seen[len(forwards) :]) == sorted(forwards)


def test_an_attention_override_that_is_already_there_stays_on_top(gradients, tiny, text):
    model, kernels = tiny[0].clone(), []

    def theirs(function, *args, **kwargs):
        kernels.append(function.__name__)
        return function(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = theirs
    _gradient_of_denoise(gradients, model, SIGMA * _noise(1, 4, 16, 16), text, "x")
    assert kernels and set(kernels) == {"attention_pytorch"}
    assert model.model_options["transformer_options"]["optimized_attention_override"] is theirs


def test_samples_are_bit_identical_before_and_after(host, gradients, tiny, text):
    unet, vae = tiny[0].model.diffusion_model, tiny[2]
    before, traces = _sample(host, tiny, text), (_traces(unet), _traces(vae.first_stage_model))
    _gradient_of_denoise(gradients, tiny[0], SIGMA * _noise(1, 4, 16, 16), text, "x")
    with torch.inference_mode(), gradients.differentiable():
        z = _noise(1, 4, 8, 8).requires_grad_()
        torch.autograd.grad(gradients.decode(vae, z).sum(), z)
    assert torch.equal(_sample(host, tiny, text), before)
    assert _same(traces[0], _traces(unet)) and _same(traces[1], _traces(vae.first_stage_model))
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize(
    "how", ["an exception in the loss", "an interrupt forwards", "an interrupt backwards"]
)
def test_samples_are_bit_identical_after(host, gradients, tiny, text, how):
    management, unet = host.comfy.model_management, tiny[0].model.diffusion_model
    before, traces = _sample(host, tiny, text), _traces(unet)
    error = ZeroDivisionError if "exception" in how else management.InterruptProcessingException
    with torch.inference_mode(), pytest.raises(error):
        gradients.load([tiny[0]], 0)
        with gradients.checkpointed(unet), gradients.differentiable():
            leaf = (SIGMA * _noise(1, 4, 16, 16)).requires_grad_()
            management.interrupt_current_processing(how == "an interrupt forwards")
            x0 = gradients.denoise(tiny[0], leaf, torch.full((1,), SIGMA), text)
            if "exception" in how:
                raise ZeroDivisionError
            management.interrupt_current_processing(True)  # seen when the checkpoints recompute their blocks
            torch.autograd.grad(x0.sum(), leaf)
    management.interrupt_current_processing(False)
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(_sample(host, tiny, text), before) and _same(traces, _traces(unet))


def test_inside_a_sampler_a_backward_pass_changes_nothing_and_agrees_with_denoise(
    host, gradients, tiny, text
):
    model, found = tiny[0].clone(), SimpleNamespace(pairs=[], estimates=[])

    def look(args):
        with gradients.differentiable():
            leaf, sigma = args["input"].clone().requires_grad_(), args["sigma"]
            (x0,) = gradients.calc_conds(args["model"], [args["cond"]], leaf, sigma, args["model_options"])
            own = gradients.denoise(model, leaf, sigma, text)
            found.pairs.append([torch.autograd.grad(d.square().sum(), leaf)[0] for d in (x0, own)])
            found.estimates.append((x0.detach(), args["cond_denoised"].clone()))
            z = args["denoised"].clone().requires_grad_()
            gradients.load([tiny[2].patcher], 0)
            torch.autograd.grad(gradients.decode(tiny[2], z).sum(), z)
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(look)
    assert torch.equal(_sample(host, tiny, text, model), _sample(host, tiny, text))
    assert len(found.pairs) == 3
    for (as_sampled, own), (estimate, theirs) in zip(found.pairs, found.estimates, strict=True):
        assert own.abs().max() > 0 and torch.allclose(as_sampled, own, rtol=1e-3, atol=1e-5)
        assert torch.allclose(estimate, theirs, rtol=1e-3, atol=1e-3)


def test_loading_the_vae_in_a_sampler_keeps_the_sampled_model(host, gradients, tiny):
    management = host.comfy.model_management
    with torch.inference_mode():
        management.load_models_gpu([tiny[0]])
        gradients.load([tiny[2].patcher], 2**20)
    assert gradients.is_loaded(tiny[0]) and gradients.is_loaded(tiny[2].patcher)


def test_the_memory_asked_for_grows_with_the_batch_and_covers_what_autograd_keeps(host, gradients):
    """Use SD's own VAE widths; 4x4 cells are enough to weigh them."""
    widths = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    widths |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    vae = _kl_vae(host, widths, torch.float32)
    weights = host.comfy.model_management.module_size(vae.first_stage_model.decoder)
    with torch.inference_mode():
        _, kept = _gradient_and_bytes(gradients, _noise(1, 4, 4, 4), lambda at: gradients.decode(vae, at))
    asked = gradients.decode_memory(vae, torch.Size((1, 4, 4, 4)))
    assert 0.4 * asked < kept - weights < asked
    assert gradients.decode_memory(vae, torch.Size((3, 4, 4, 4))) == 3 * asked
