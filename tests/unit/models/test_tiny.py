"""Tiny models are the same in every process."""

import json
import subprocess
import sys

from rerank_core.data.loading import load_collection
from rerank_core.models.tiny import tiny_tokenizer

PRINT_VOCABULARY = """
import json, sys
from rerank_core.models.tiny import tiny_tokenizer
vocabulary = tiny_tokenizer(json.load(sys.stdin), has_mask=True).get_vocab()
print(json.dumps(vocabulary, sort_keys=True))
"""


def test_a_tokenizer_learns_the_same_tokens_in_every_process():
    texts = [document.content for document in load_collection("sample").documents.values()]
    here = tiny_tokenizer(texts, has_mask=True).get_vocab()
    for _ in range(2):
        command = [sys.executable, "-c", PRINT_VOCABULARY]
        found = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
        assert json.loads(found.stdout) == here
