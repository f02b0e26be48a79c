//! The descriptions of the protocol in `docs/`, held against what servers really send.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::harness::*;
use crate::recording::Recording;
use crate::tools::tool;

/// `docs/protocol.md`.
static PROTOCOL: LazyLock<String> = LazyLock::new(|| read("docs/protocol.md"));

/// The kinds of value that each field has, `absent` among them.
type Fields = BTreeMap<String, BTreeSet<String>>;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The section of a document below this heading, up to the next heading.
fn section(heading: &str) -> &'static str {
    let heading = format!("\n{heading}\n");
    let (_, rest) = PROTOCOL
        .split_once(&heading)
        .unwrap_or_else(|| panic!("there is no {heading}"));
    rest.split("\n## ")
        .next()
        .unwrap()
        .split("\n### ")
        .next()
        .unwrap()
}

/// The rows of the first table of a section that begins with these columns.
fn rows(section: &'static str, columns: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = section
        .split_once(columns)
        .unwrap_or_else(|| panic!("no table: {columns}"));
    let rows = rest
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// The blocks of a document in this language.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let begin = format!("```{language}\n");
    let blocks: Vec<_> = PROTOCOL.split(&begin).skip(1).collect();
    blocks
        .into_iter()
        .map(|block| block.split("```").next().unwrap())
}

/// The JSON values of all examples, each on a line.
fn examples() -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    blocks("json").flat_map(str::lines).map(parse).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The fields of an object, and the kind of each. An array is what its elements are.
fn shape(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(elements) => elements.iter().flat_map(shape).collect(),
        value => {
            let kind_of = |(name, value): (&String, &Value)| match name.as_str() {
                "type" => format!("type {value}"),
                name => format!("{name} {}", kind(value)),
            };
            value.as_object().unwrap().iter().map(kind_of).collect()
        }
    }
}

/// What is described in the table of a section.
fn described(heading: &str) -> Fields {
    let rows = rows(section(heading), "| field | type | meaning |");
    let field = |row: Vec<&str>| {
        let kinds = row[1].split(" or ").map(str::to_owned).collect();
        (row[0].trim_matches('`').to_owned(), kinds)
    };
    rows.into_iter().map(field).collect()
}

/// What these objects have.
fn found<'a>(objects: impl Iterator<Item = &'a Value> + Clone) -> Fields {
    let mut fields = Fields::new();
    let all: BTreeSet<_> = objects
        .clone()
        .flat_map(|it| it.as_object().unwrap().keys())
        .collect();
    for object in objects {
        for name in &all {
            let kind = object.get(name).map_or("absent", kind);
            fields
                .entry((*name).clone())
                .or_default()
                .insert(kind.to_owned());
        }
    }
    fields
}

fn of_type<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> + Clone {
    events.iter().filter(move |event| event["type"] == kind)
}

/// The headings of the events.
fn event_types() -> BTreeSet<String> {
    let (_, rest) = PROTOCOL.split_once("\n## The JSON format\n").unwrap();
    let (section, _) = rest.split_once("\n## ").unwrap();
    let headings = section
        .lines()
        .filter_map(|line| line.strip_prefix("### `"));
    headings
        .map(|line| line.trim_end_matches('`').to_owned())
        .collect()
}

/// The lines of each event of a stream: names of fields, with the value where the standard knows it.
fn lines_of(stream: &str) -> impl Iterator<Item = Vec<String>> {
    stream
        .split("\n\n")
        .map(str::trim_start)
        .filter(|event| !event.is_empty())
        .map(|event| {
            let name = |line: &str| match line.split_once(':').unwrap() {
                ("", "") => "empty comment".to_owned(),
                ("", _) => "comment".to_owned(),
                ("event", kind) => format!("event:{kind}"),
                (name, _) => name.to_owned(),
            };
            event.lines().map(name).collect()
        })
}

#[tokio::test]
async fn protocol_md_describes_each_event_and_answer_and_nothing_else() {
    let recording = Recording::new().await;
    let examples = examples();

    // Events: each has a section with a table of its fields; the fields have the kinds of value that it says.
    let types: BTreeSet<_> = recording
        .events
        .iter()
        .map(|it| it["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(event_types(), types);
    for kind in &types {
        let described = described(&format!("### `{kind}`"));
        assert_eq!(described, found(of_type(&recording.events, kind)), "{kind}");
        assert_eq!(
            described,
            found(of_type(&examples, kind)),
            "the examples of {kind}"
        );
    }

    // Answers to POST and to `?clients`.
    let bodies = |method: &str, target: &str, codes: &[u16]| {
        let asked = recording
            .exchanges
            .iter()
            .filter(|it| it.method == method && it.target.starts_with(target));
        let answers = asked.filter(|it| codes.contains(&it.answer.code));
        answers.map(|it| it.answer.json()).collect::<Vec<_>>()
    };
    let posted = bodies("POST", "/", &[200, 201]);
    assert_eq!(described("### Publish"), found(posted.iter()));
    let clients = bodies("GET", "/?clients", &[200]);
    assert_eq!(described("### Read the clients"), found(clients.iter()));

    // Each example looks like what a server has sent.
    let history = bodies("GET", "/?history", &[200]);
    let histories = history.iter().flat_map(|it| it.as_array().unwrap());
    let sent = recording
        .events
        .iter()
        .chain(&posted)
        .chain(&clients)
        .chain(histories);
    let shapes: BTreeSet<_> = sent.map(shape).collect();
    for example in &examples {
        let elements = example
            .as_array()
            .map_or(std::slice::from_ref(example), Vec::as_slice);
        for element in elements {
            assert!(
                shapes.contains(&shape(element)),
                "no server sends this: {element}"
            );
        }
    }
    for answers in [&posted, &clients] {
        for answer in answers {
            assert!(
                examples.iter().any(|it| shape(it) == shape(answer)),
                "no example: {answer}"
            );
        }
    }

    // Event streams.
    let sent: BTreeSet<_> = recording
        .streams
        .iter()
        .flat_map(|it| lines_of(it))
        .map(deduplicated)
        .collect();
    let shown: BTreeSet<_> = blocks("text")
        .flat_map(lines_of)
        .map(deduplicated)
        .collect();
    assert!(
        shown.is_subset(&sent),
        "no server sends this: {:?}",
        shown.difference(&sent)
    );
    let words =
        |events: &BTreeSet<Vec<String>>| events.iter().flatten().cloned().collect::<BTreeSet<_>>();
    assert_eq!(words(&shown), words(&sent));

    // Statuses.
    let statuses = rows(section("### Statuses"), "| status | when |");
    let statuses: BTreeSet<u16> = statuses.iter().map(|row| row[0].parse().unwrap()).collect();
    let answered: BTreeSet<_> = recording
        .exchanges
        .iter()
        .map(|it| it.answer.code)
        .collect();
    assert_eq!(statuses, answered);
}

/// The lines without repetitions.
fn deduplicated(mut lines: Vec<String>) -> Vec<String> {
    lines.dedup();
    lines
}

#[test]
fn protocol_md_describes_each_parameter_of_a_query() {
    let source: String = ["request", "routes", "history", "publish"]
        .map(|name| read(&format!("src/http/{name}.rs")))
        .concat();
    let calls = ["self.get(\"", "query.get(\"", "self.id(\"", "query.id(\""];
    let taken = calls.iter().flat_map(|call| source.split(call).skip(1));
    let taken: BTreeSet<_> = taken.map(|rest| rest.split('"').next().unwrap()).collect();
    let rows = rows(
        section("## Rooms and addresses"),
        "| parameter | for | value |",
    );
    let cells = rows.iter().flat_map(|row| row[0].split(", "));
    let described: BTreeSet<_> = cells.map(|name| name.trim_matches('`')).collect();
    assert_eq!(described, taken);
}

/// `tests/papers.py` says what it checks. Left out where its tools are missing, which `WSCAST_TEST_ALL` does not
/// allow.
#[tokio::test]
async fn asyncapi_and_openapi_describe_what_servers_send_and_nothing_else() {
    let Some(python) = tool("bin/python") else {
        return;
    };
    let mut child = Command::new(python)
        .arg("tests/papers.py")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let recording = Recording::new().await.to_json().to_string();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(recording.as_bytes()).await.unwrap();
    drop(stdin);
    let status = timeout(PATIENCE, child.wait())
        .await
        .expect("it does not end");
    assert!(status.unwrap().success(), "see above");
}
