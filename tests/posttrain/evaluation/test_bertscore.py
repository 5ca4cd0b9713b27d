"""BERTScore by hand, and through an encoder of random weights."""

import pytest
import torch
from kit import bytelevel_tokenizer
from tokenizers import processors
from transformers import BertConfig, BertModel

from posttrain.errors import UserError
from posttrain.evaluation.bertscore import Encoder, f1


def test_by_hand():
    # answer (1,0), (0,1); reference (3,4): cosines .6 and .8: precision (.6 + .8)/2 = .7, recall max = .8, F = 2·.7·.8/1.5
    found = f1(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 4.0]]))
    assert found == pytest.approx(0.746667, abs=1e-6)
    assert f1(torch.zeros(0, 2), torch.ones(1, 2)) == 0.0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("bert"), bytelevel_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")]
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    tokenizer.save_pretrained(folder)
    return folder


def test_the_same_text_has_1_and_the_batch_changes_nothing(encoder):
    made = Encoder(str(encoder), None, "--key")
    said, wanted = ["the lazy dog", "one", "", "two three"], ["the lazy dog", "the quick brown fox", "x", "two"]
    found = [made.f1(said, wanted, device=torch.device("cpu"), batch_size=size) for size in (1, 4)]
    assert found[0][0] == pytest.approx(1.0, abs=1e-6) and found[0][2] == 0.0 and 0 < found[0][1] < 0.999
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    # special tokens are read and do not count
    assert [len(s) for s in made.states(["one"], 1)] == [
        len(made.tokenizer("one", add_special_tokens=False)["input_ids"])
    ]
    assert Encoder(str(encoder), 1, "--key").about.startswith("layer 1 of bert")


def test_what_is_no_encoder_is_refused(encoder, tmp_path):
    with pytest.raises(UserError, match=r"--key './none': no such folder"):
        Encoder("./none", None, "--key")
    with pytest.raises(UserError, match="cannot be loaded as an encoder"):
        Encoder(str(tmp_path), None, "--key")
    with pytest.raises(UserError, match="has 2 layers, asked for is layer 3"):
        Encoder(str(encoder), 3, "--key")
