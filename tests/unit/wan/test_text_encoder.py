"""True length, zero padding, and what is told of a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from fpsgen import assets
from fpsgen.wan.text_encoder import TextEncoder
from fpsgen.weights.layout import recognise
from fpsgen.weights.load import load_text_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(wan_folder: Path) -> TextEncoder:
    return load_text_encoder(recognise(wan_folder), CPU, torch.float32)


@pytest.mark.parametrize("prompt", ["a cat surfing on the sea", "dog", ""])
def test_equals_diffusers(wan_pipeline: WanPipeline, encoder: TextEncoder, prompt: str) -> None:
    expected = wan_pipeline._get_t5_prompt_embeds(prompt, max_sequence_length=512)
    got = encoder.encode(prompt).text
    assert got.shape == expected.shape == (1, 512, 24)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # they attend with a mask, we at true length


def test_rows_beyond_the_prompt_are_zero(encoder: TextEncoder) -> None:
    text = encoder.encode("a cat").text[0]
    assert (text[:3].abs().sum(1) > 0).all()  # two words and the end token
    assert text[3:].abs().max() == 0


def test_a_long_prompt_is_cut_and_keeps_its_end_token(encoder: TextEncoder) -> None:
    encoded = encoder.encode("cat " * 600)
    assert encoded.cut
    assert encoded.text.shape == (1, 512, 24)
    assert (encoded.text[0].abs().sum(1) > 0).all()
    assert not encoder.encode("cat " * 511).cut


def test_what_has_no_token_is_told(encoder: TextEncoder) -> None:
    assert encoder.encode("a purple cat juggling, purple").unknown == ("purple", "juggling")
    assert encoder.encode("a cat").unknown == ()


def test_a_long_prompt_makes_the_library_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Its tokenizer warns, of a length that we cut; the pocket's has a limit of its own."""
    pocket = load_text_encoder(recognise(assets.folder("pocket")), CPU, torch.float32)
    assert pocket.encode("a cat surfing " * 40).cut
    assert capfd.readouterr().err == ""
