"""An OpenAI-compatible server for models at hand: `protocol` reads what is asked, `answer` makes pieces of tokens,
`engine` writes all answers in running batches, `app` speaks HTTP, `run` listens, `vllm` hands over to vLLM."""
