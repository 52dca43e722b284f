"""`python -m potstill.recipe` prints the JSON Schema of recipes, for editors."""

import json
import sys

from potstill.recipe.schema import recipe_schema

sys.stdout.write(json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n")
