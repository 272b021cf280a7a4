"""How models of the kit are broken, each in a way that every implementation must refuse."""

REFUSED = [
    *(
        {"what": what, "model": "plain", "file": "model.json", "replace": list(replace)}
        for what, *replace in (
            ("another major version", '"format_version": "1"', '"format_version": "2"'),
            ("an unknown key", '"metadata"', '"metadate"'),
            ("an unknown parameter", '"qkv_bias"', '"qvk_bias"'),
            ("a missing parameter", '"vocab_size": 32,', ""),
            ("a key that stands twice", '"vocab_size": 32,', '"vocab_size": 32, "vocab_size": 32,'),
            ("a negative size", '"num_layers": 2', '"num_layers": -2'),
            ("a huge size", '"vocab_size": 32', f'"vocab_size": {10**30}'),
            ("heads that do not divide", '"num_kv_heads": 2', '"num_kv_heads": 3'),
            ("another shape than the file's", '"ffn_dim": 24', '"ffn_dim": 25'),
            ("a tensor that is missing", '"tie_embeddings": true', '"tie_embeddings": false'),
            ("a tensor too many", '"num_layers": 2', '"num_layers": 1'),
            ("a file outside the folder", '"model.safetensors"', '"../plain/model.safetensors"'),
            ("a file that is not there", '"model.safetensors"', '"other.safetensors"'),
        )
    ),
    *(
        {"what": what, "model": model, "file": "model.json", "replace": list(replace)}
        for what, model, *replace in (
            ("a longrope factor too many", "longrope", "      5.0", "      5.0, 6.0"),
            ("more experts than a token reaches", "experts-in-groups", '_token": 3', '_token": 5'),
            ("groups that do not divide", "experts-in-groups", '"groups": 4', '"groups": 3'),
            ("a dense layer that is not there", "mixtral", "        0\n", "        0, 3\n"),
            ("latent attention with qk_norm", "latent", '"qk_norm": null', '"qk_norm": "head"'),
            (
                "latent keys without kv_rank",
                "plain",
                '"qk_norm"',
                '"latent": {"q_rank": 8}, "qk_norm"',
            ),
            (
                "expert keys without a count",
                "plain",
                '"mlp":',
                '"experts": {"per_token": 3}, "mlp":',
            ),
            ("next_sentence without a pooler", "bert", '"pooler": true', '"pooler": false'),
            ("a label that stands twice", "bert", '"fair"', '"bad"'),
            (
                "a level without labels",
                "plain",
                '"mlp":',
                '"classifier": {"level": "token"}, "mlp":',
            ),
            ("a causal MLM head", "mlm-untied", '"causal": false', '"causal": true'),
            (
                "an MLM head without its tensors",
                "plain",
                '"causal": true',
                '"causal": false, "head": "mlm"',
            ),
            ("a causal model without a head", "trunk", '"causal": false', '"causal": true'),
            ("an encoder without its tensors", "prefix-lm", '"num_layers": 0', '"num_layers": 1'),
            ("buckets that do not divide", "t5", '"relative_buckets": 8', '"relative_buckets": 6'),
            ("a decoder that is not causal", "bart", '"causal": true', '"causal": false'),
            ("a decoder without a start", "bart", '"decoder_start_id": 5', '"eos_ids": [5]'),
            (
                "a prefix of an encoder",
                "encoder",
                '"causal": false',
                '"causal": false, "prefix_lm": true',
            ),
        )
    ),
    {"what": "weights cut off", "model": "plain", "file": "model.safetensors", "cut": 6000},
    {"what": "a header cut off", "model": "plain", "file": "model.safetensors", "cut": 200},
    *(
        {"what": what, "model": "plain", "file": "model.safetensors", "replace": list(replace)}
        for what, *replace in (
            ("an unknown dtype", '"embed.table":{"dtype":"F32"', '"embed.table":{"dtype":"I32"'),
            ("overlapping tensors", '"data_offsets":[0,2048]', '"data_offsets":[8,2056]'),
            ("a lying shape", '"shape":[32,16]', '"shape":[32,61]'),
        )
    ),
]
