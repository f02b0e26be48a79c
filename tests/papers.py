"""Holds docs/asyncapi.yaml and docs/openapi.yaml against a recording of what servers sent, in JSON on stdin.

Both are valid, and so are their examples. Both ways: whatever a server sent is described, and whatever is described was
sent: fields and their kinds of value, which are always there, the values of an enum, statuses, types of bodies, header
fields, parameters. It prints what is wrong, and then exits with 1.
"""

import json
import pathlib
import sys
from urllib.parse import parse_qsl, urlsplit

import yaml
from jsonschema import Draft202012Validator, Draft7Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

ROOT = pathlib.Path(__file__).parent.parent
ASYNCAPI_SCHEMA = ROOT / "target/test-tools/node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json"
METHODS = ["get", "head", "post", "options"]
wrong = []


def check(condition, text):
    if not condition:
        wrong.append(text)


def resolve(document, node):
    """What a reference refers to."""
    while isinstance(node, dict) and "$ref" in node:
        reference, node = node["$ref"], document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    return node


def validate(document, schema, value, where):
    # References are to the whole document.
    schema = {**document, **schema}
    for error in Draft202012Validator(schema).iter_errors(value):
        wrong.append(f"{where}: {error.json_path}: {error.message}")


def kind(value):
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "string", list: "array", dict: "object", type(None): "null"}[type(value)]


def kinds(schema):
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    return {"number" if it == "integer" else it for it in types}


def shape(value):
    """The fields of an object and their kinds; of an array, those of its elements."""
    if isinstance(value, list):
        return sorted({str(shape(it)) for it in value})
    if isinstance(value, dict):
        return sorted((name, it if name == "type" else kind(it)) for name, it in value.items())
    return kind(value)


def compare(schema, values, where):
    """Both ways: the fields of objects in the schema, and those in the values."""
    described, seen = schema["properties"], {name for value in values for name in value}
    check(set(described) == seen, f"{where}: described {sorted(described)}, sent {sorted(seen)}")
    always = {name for name in seen if all(name in value for value in values)}
    required = set(schema.get("required", []))
    check(required == always, f"{where}: required {sorted(required)}, always sent {sorted(always)}")
    for name, field in described.items():
        sent = [value[name] for value in values if name in value]
        found = {kind(it) for it in sent}
        check(kinds(field) == found, f"{where}.{name}: described {kinds(field)}, sent {found}")
        for value in field.get("enum", []):
            check(value in sent, f"{where}.{name}: {value!r} was never sent")


def check_asyncapi(document, recording):
    schema = json.loads(ASYNCAPI_SCHEMA.read_text())
    for error in Draft7Validator(schema).iter_errors(document):
        wrong.append(f"asyncapi.yaml: {error.json_path}: {error.message[:300]}")
    channel = document["channels"]["room"]
    messages = {name: resolve(document, it) for name, it in channel["messages"].items()}
    check(messages == document["components"]["messages"], "asyncapi.yaml: not all messages are of the channel")

    events = {}
    for event in recording["events"]:
        events.setdefault(event["type"], []).append(event)
    of_server = document["operations"]["sendEvents"]["messages"]
    of_server = {it["$ref"].rsplit("/", 1)[1] for it in of_server}
    check(of_server == set(events), f"asyncapi.yaml: events {sorted(of_server)}, sent {sorted(events)}")
    for name in of_server & set(events):
        payload, where = messages[name]["payload"], f"asyncapi.yaml: {name}"
        compare(payload, events[name], where)
        for event in events[name]:
            validate({}, payload, event, where)
    for name, message in messages.items():
        where = f"asyncapi.yaml: the example of {name}"
        check("examples" in message or name == "binary", f"{where}: there is none")
        shapes = [shape(it) for it in events.get(name, [])]
        for example in message.get("examples", []):
            validate({}, message["payload"], example["payload"], where)
            if name in of_server:
                check(shape(example["payload"]) in shapes, f"{where}: no server sends this: {example['payload']}")

    asked = [it for it in recording["exchanges"] if it["status"] == 101]
    queries, heads = [query(it) for it in asked], [it["fields"] for it in asked]
    described = channel["bindings"]["ws"]["query"]["properties"]
    compare_names("asyncapi.yaml: query", described, {name for it in queries for name in it})
    for values in queries:
        validate({}, channel["bindings"]["ws"]["query"], values, "asyncapi.yaml: query")
    for name in channel["bindings"]["ws"]["headers"]["properties"]:
        check(any(name.lower() in it for it in heads), f"asyncapi.yaml: no request had {name}")


def compare_names(where, described, found):
    check(set(described) == set(found), f"{where}: described {sorted(described)}, found {sorted(found)}")


def query(exchange):
    return dict(parse_qsl(urlsplit(exchange["target"]).query, keep_blank_values=True))


def check_openapi(document, recording):
    for error in OpenAPIV31SpecValidator(document).iter_errors():
        wrong.append(f"openapi.yaml: {error.message[:300]}")
    general = {it.lower() for it in document["x-headers-of-any-answer"]}
    exchanges = {}
    for it in recording["exchanges"]:
        path = urlsplit(it["target"]).path
        path = path if path in document["paths"] else "/{room}"
        exchanges.setdefault((path, it["method"]), []).append(it)
    operations = {
        (path, method): item[method] for path, item in document["paths"].items() for method in METHODS if method in item
    }
    check(set(operations) == set(exchanges), f"openapi.yaml: {set(operations) ^ set(exchanges)}")
    seen_general, sent = set(), {}
    for key in set(operations) & set(exchanges):
        where, operation, answers = f"openapi.yaml: {key[1]} {key[0]}", operations[key], exchanges[key]
        described = operation["responses"]
        compare_names(where, described, {str(it["status"]) for it in answers})
        for status, response in described.items():
            of_status = [it for it in answers if str(it["status"]) == status]
            response, place = resolve(document, response), f"{where}: {status}"
            seen_general |= general & {name for it in of_status for name in it["head"]}
            compare_answers(document, response, of_status, general, place)
            for it in of_status:
                check_body(document, response, it, key[1], place, sent)
        check_parameters(document, operation, answers, where)
    compare_names("openapi.yaml: headers of any answer", general, seen_general)
    for name, schema in document["components"]["schemas"].items():
        if schema["type"] == "object":
            values = sent.get(name, [])
            check(values, f"openapi.yaml: {name} was never sent")
            compare(schema, values, f"openapi.yaml: {name}")
    check_examples(document, document, "openapi.yaml", {str(shape(it)) for it in sum(sent.values(), [])})


def compare_answers(document, response, answers, general, where):
    """The header fields and the types of the answers of a status."""
    headers = {name.lower(): resolve(document, it)["schema"] for name, it in response.get("headers", {}).items()}
    seen = {name for it in answers for name in it["head"]} - general
    compare_names(f"{where}: headers", headers, seen)
    for name, schema in headers.items():
        values = [it["head"][name] for it in answers if name in it["head"]]
        for value in values:
            # The recording has heads in lower case.
            known = [str(it).lower() for it in schema.get("enum", [schema.get("const", value)])]
            check(value in known, f"{where}: {name}: {value}")
            check(schema["type"] == "string" or value.isdigit(), f"{where}: {name}: {value}")
    # HEAD has no body, and no types of it.
    if "content" in response:
        types = {it["head"].get("content-type", "").split(";")[0] for it in answers if it["method"] != "head"}
        if types:
            compare_names(f"{where}: types", response["content"], types)


def check_body(document, response, exchange, method, where, sent):
    """A body against its schema; adds the objects in it to those that were sent."""
    if method == "head":
        check(exchange["body"] == "", f"{where}: a body")
        return
    media = response.get("content", {}).get(exchange["head"].get("content-type", "").split(";")[0])
    if media is None:
        check(exchange["body"] == "", f"{where}: a body that is not described")
        return
    is_json = exchange["head"]["content-type"] == "application/json"
    body = json.loads(exchange["body"]) if is_json else exchange["body"].removesuffix("\n")
    validate(document, media["schema"], body, f"{where}: {body!r:.200}")
    if is_json:
        for it in body if isinstance(body, list) else [body]:
            name = it["type"].title() if "type" in it else "Clients" if "names" in it else "Published"
            sent.setdefault(name, []).append(it)


def check_parameters(document, operation, answers, where):
    served = [it for it in answers if it["status"] < 400]
    parameters = [resolve(document, it) for it in operation.get("parameters", [])]
    names = {it["name"] for it in parameters if it["in"] == "query"}
    compare_names(f"{where}: query", names, {name for it in served for name in query(it)})
    for it in parameters:
        if it["in"] == "header":
            used = any(it["name"].lower() in exchange["fields"] for exchange in served)
            check(used, f"{where}: no request had {it['name']}")
        for exchange in served:
            value = query(exchange).get(it["name"]) if it["in"] == "query" else exchange["fields"].get(it["name"].lower())
            if value is not None:
                value = int(value) if it["schema"]["type"] == "integer" else value
                validate({}, it["schema"], value, f"{where}: {it['name']}")


def check_examples(document, node, where, shapes):
    """Every example below a schema."""
    if isinstance(node, list):
        for it in node:
            check_examples(document, it, where, shapes)
    if not isinstance(node, dict):
        return
    if "schema" in node:
        examples = [it["value"] for it in node.get("examples", {}).values()]
        examples += [node["example"]] if "example" in node else []
        for example in examples:
            validate(document, node["schema"], example, f"{where}: an example")
            for it in example if isinstance(example, list) else [example]:
                check(not isinstance(it, dict) or str(shape(it)) in shapes, f"{where}: no server sends this: {it}")
    for name, it in node.items():
        check_examples(document, it, f"{where}.{name}", shapes)


def main():
    recording = json.load(sys.stdin)
    for name, check_document in [("asyncapi", check_asyncapi), ("openapi", check_openapi)]:
        document = yaml.safe_load((ROOT / f"docs/{name}.yaml").read_text(encoding="utf-8"))
        check_document(document, recording)
    print(*dict.fromkeys(wrong), sep="\n", file=sys.stderr)
    sys.exit(1 if wrong else 0)


main()
