// Strict JSON: no duplicate keys, finite numbers only, and nothing but what a published schema allows.

/** An expected error. Its message is one line: what was found, what was expected, what to do. */
export class Problem extends Error {}

/** Parse a JSON text. Throws a Problem, whose message begins with `name`. */
export function parse(text, name) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Problem(`${name}: not valid JSON: ${error.message}`);
  }
  // In valid JSON a string is a key exactly where a colon follows it.
  const keys = [...text.matchAll(/"(?:[^"\\]|\\.)*"(\s*:)?/g)].filter((match) => match[1]).length;
  if (keys !== countKeys(value, name)) throw new Problem(`${name}: not valid JSON: duplicate key`);
  return value;
}

function countKeys(value, name) {
  if (typeof value === "number" && !Number.isFinite(value)) throw new Problem(`${name}: holds too large a number`);
  if (value === null || typeof value !== "object") return 0;
  const own = Array.isArray(value) ? 0 : Object.keys(value).length;
  return Object.values(value).reduce((sum, each) => sum + countKeys(each, name), own);
}

/** Check a value against a JSON Schema; only the keywords of our schemas are known. Throws a Problem. */
export function check(value, schema, name, where = "", root = schema) {
  if (schema.$ref) return check(value, root.$defs[schema.$ref.split("/").at(-1)], name, where, root);
  if (schema.anyOf) {
    // Always "this or null".
    if (value !== null) check(value, schema.anyOf.find((each) => each.type !== "null"), name, where, root);
    return undefined;
  }
  const expect = (valid, expected) => {
    if (valid) return;
    const found = JSON.stringify(value) ?? "nothing";
    const shown = found.length <= 60 ? found : `${found.slice(0, 57)}...`;
    throw new Problem(`${name}: ${where || "the whole file"}: found ${shown}, expected ${expected}`);
  };
  if (schema.enum) expect(schema.enum.includes(value), schema.enum.map((each) => JSON.stringify(each)).join(" or "));
  if (schema.type) expect(isOfType(value, schema.type), `a value of type ${schema.type}`);
  if (schema.pattern) expect(new RegExp(schema.pattern, "u").test(value), `a match of ${schema.pattern}`);
  if ("minimum" in schema) expect(value >= schema.minimum, `at least ${schema.minimum}`);
  if ("maximum" in schema) expect(value <= schema.maximum, `at most ${schema.maximum}`);
  if ("minItems" in schema) expect(value.length >= schema.minItems, `at least ${schema.minItems} items`);
  if ("maxItems" in schema) expect(value.length <= schema.maxItems, `at most ${schema.maxItems} items`);
  if (schema.items) value.forEach((each, index) => check(each, schema.items, name, `${where}[${index}]`, root));
  if (schema.properties) {
    const prefix = where && `${where}.`;
    for (const key of Object.keys(value)) {
      if (!Object.hasOwn(schema.properties, key)) {
        throw new Problem(`${name}: ${prefix}${key.slice(0, 60)}: unknown key`);
      }
    }
    for (const key of schema.required) {
      if (!Object.hasOwn(value, key)) throw new Problem(`${name}: ${prefix}${key}: missing`);
      check(value[key], schema.properties[key], name, prefix + key, root);
    }
  }
  return undefined;
}

function isOfType(value, type) {
  if (type === "integer") return Number.isSafeInteger(value);
  if (type === "array") return Array.isArray(value);
  if (type === "object") return value !== null && typeof value === "object" && !Array.isArray(value);
  return typeof value === type;
}
