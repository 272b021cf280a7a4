"""500 of 500 samples at temperature 1 are what their schema says: SmolLM2-135M-Instruct.

    python experiments/acceptance/constrained.py [--samples=500]

The engine writes answers to five questions, each with a JSON schema of its own (nested objects,
arrays, enumerations, numbers with bounds, strings with a pattern), at temperature 1 and without any
filter; `jsonschema` reads them. Every text has to end by itself, parse and be valid. The same
questions without a schema are counted beside it. Writes constrained.json beside this file. About
ten minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import jsonschema

from llmasos_jax import load_model
from llmasos_jax.engine import Ask, Engine, EngineOptions, Ticket
from llmasos_jax.generate.chat import chat_ids
from llmasos_jax.generate.guides import Guide, guides_of
from llmasos_jax.generate.sampling import Sampling

HERE = Path(__file__).parent
MOST_TOKENS = 256


def of(**properties: dict) -> dict:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "minLength": 1, "maxLength": 20}
QUESTIONS = {
    "Describe a person.": of(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 120}),
    "Describe a city with its rivers.": of(
        city=WORD,
        country=WORD,
        rivers={"type": "array", "items": WORD, "minItems": 1, "maxItems": 3},
    ),
    "Rate a film.": of(
        title=WORD,
        verdict={"enum": ["good", "bad", "mixed"]},
        stars={"type": "number", "minimum": 0, "maximum": 5},
        seen={"type": "boolean"},
    ),
    "Give an order of a shop.": of(
        id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        items={
            "type": "array",
            "items": of(name=WORD, count={"type": "integer", "minimum": 1, "maximum": 99}),
            "minItems": 1,
            "maxItems": 2,
        },
    ),
    "Describe a book and its author.": of(
        title=WORD,
        author=of(name=WORD, born={"type": ["integer", "null"], "minimum": 0, "maximum": 2025}),
        words={
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 999999}, {"const": "unknown"}]
        },
    ),
}


def is_valid(text: str, schema: dict) -> bool:
    """Whether a text is JSON that follows a schema."""
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=500)
    args = parser.parse_args()
    model = load_model("smollm2-135m-instruct")
    options = EngineOptions(batch_sizes=(16,), context=512, max_queue=2000)
    rows = []
    with Engine(model, options) as engine:
        engine.warm_up()
        for number, (question, schema) in enumerate(QUESTIONS.items()):
            wish = (
                f"{question} Answer in JSON with these fields: {', '.join(schema['properties'])}."
            )
            messages = [{"role": "user", "content": wish}]
            ids = tuple(chat_ids(model.chat_template(), messages, model.tokenizer, "SmolLM2"))
            guide = Guide.json_schema(schema)

            def ask(index, constraint=None, ids=ids, seed=number) -> Ticket:
                sampling = Sampling(temperature=1.0, seed=seed, index=index)
                return engine.submit(Ask(ids, MOST_TOKENS, sampling, constraint=constraint))

            num = args.samples // len(QUESTIONS)
            bound = [ask(i, guides_of(model).start(guide, ids)) for i in range(num)]
            texts = []
            for ticket in bound:
                pieces = list(ticket)
                texts.append(("".join(p.text for p in pieces), pieces[-1].finish))
            free = [ask(i).text() for i in range(min(num, 20))]
            rows.append(
                {
                    "question": question,
                    "samples": num,
                    "ended_by_themselves": sum(finish == "stop" for _, finish in texts),
                    "valid": sum(is_valid(text, schema) for text, _ in texts),
                    "different": len({text for text, _ in texts}),
                    "free_samples": len(free),
                    "free_valid": sum(is_valid(text, schema) for text in free),
                    "example": texts[0][0],
                }
            )
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    figures = {
        "samples": sum(row["samples"] for row in rows),
        "valid": sum(row["valid"] for row in rows),
        "questions": rows,
        "python": platform.python_version(),
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (HERE / "constrained.json").write_text(text + "\n", encoding="utf-8")
    print(figures["valid"], "of", figures["samples"])


if __name__ == "__main__":
    main()
