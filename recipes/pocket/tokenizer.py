"""The pocket tokenizer: one id per word of the sprite world, in Hugging Face's own format.

It behaves like UMT5's: `</s>` is appended, `<pad>` is 0, and a mask comes along. Words it has never met
become `<unk>`, which the product drops and reports, since the text encoder was never trained on it.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from recipes.pocket import prompts

TEXT_LENGTH = 32  # tokens, `</s>` and padding included; Wan2.1 has 512
SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as in UMT5


def build() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, ",", *prompts.vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    # Commas are kept because captions have them; other punctuation says nothing here.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!?;:\"'()-]+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )
