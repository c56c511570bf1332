//! The tracker's description of itself, and whether its answers are as described.
//!
//! The schemas are read more strictly than they say: a member that is not described is wrong, and
//! so is a keyword that nothing here checks.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::tracker_support::{Answer, Http};

/// Words of a schema that say nothing of a value. `pattern` and `format` are left to the clients.
const SILENT: [&str; 4] = ["description", "default", "format", "pattern"];

/// `GET /openapi.json`.
pub(crate) struct Description {
    document: Value,
    /// What was answered: an operation and its status, a schema and a member of it that was not null.
    seen: RefCell<BTreeSet<String>>,
}

/// A method and a path that are described.
pub(crate) struct Operation<'a> {
    /// As it stands in a request.
    pub(crate) method: String,
    path: &'a str,
    about: &'a Value,
}

impl Operation<'_> {
    /// Its path, for nobody: the names stand for themselves.
    pub(crate) fn target(&self) -> String {
        self.path.replace("{kill_id}", "4711").replace(['{', '}'], "")
    }

    /// Whether answers with this status are described.
    pub(crate) fn has(&self, status: u16) -> bool {
        self.about["responses"].get(status.to_string()).is_some()
    }

    /// Its name and a status that it was answered with.
    fn answered(&self, status: u16) -> String {
        format!("{} {status}", self.about["operationId"].as_str().unwrap())
    }

    /// Whose token it takes; none if it takes none.
    pub(crate) fn roles(&self) -> Vec<&str> {
        let tokens = self.about["security"].as_array().unwrap();
        tokens
            .iter()
            .flat_map(|token| token["token"].as_array().unwrap())
            .map(|role| role.as_str().unwrap())
            .collect()
    }

    pub(crate) fn takes_a_body(&self) -> bool {
        self.about.get("requestBody").is_some()
    }
}

impl Description {
    pub(crate) fn of(http: &mut Http) -> Description {
        let document = http.ok("GET", "/openapi.json", &Value::Null);
        Description { document, seen: RefCell::default() }
    }

    pub(crate) fn operations(&self) -> impl Iterator<Item = Operation<'_>> {
        let paths = self.document["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters");
            methods.map(move |(method, about)| Operation { method: method.to_uppercase(), path, about })
        })
    }

    /// The names of an operation's parameters in the query whose values have this type.
    pub(crate) fn parameters(&self, operation: &Operation<'_>, kind: &str) -> Vec<String> {
        let listed = operation.about["parameters"].as_array().into_iter().flatten();
        let meant = listed.map(|parameter| self.resolved(parameter));
        let fitting = meant.filter(|parameter| parameter["schema"]["type"] == kind);
        fitting.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
    }

    /// One exchange, which is as described: the status, the body, and, if it succeeds, what was sent.
    pub(crate) fn call(&self, http: &mut Http, method: &str, target: &str, body: &Value) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = http.call(method, target, &text);
        let operation = self.operation(method, target);
        let context = format!("{method} {target}: {}", String::from_utf8_lossy(&answer.body));
        assert!(operation.has(answer.status), "{} is not described: {context}", answer.status);
        let described = self.resolved(&operation.about["responses"][answer.status.to_string()]);
        let kind = answer.field("content-type").unwrap();
        let schema = &described["content"][kind]["schema"];
        assert!(!schema.is_null(), "{kind} is not described: {context}");
        let value = if kind == "application/json" {
            answer.json()
        } else {
            String::from_utf8_lossy(&answer.body).into()
        };
        self.check(schema, &value).unwrap_or_else(|wrong| panic!("{wrong}: {context}"));
        if answer.status == 200 && !body.is_null() {
            let schema = &operation.about["requestBody"]["content"]["application/json"]["schema"];
            self.check(schema, body).unwrap_or_else(|wrong| panic!("{wrong}: {body} was sent: {context}"));
        }
        self.seen.borrow_mut().insert(operation.answered(answer.status));
        answer
    }

    /// One exchange that succeeds as described.
    pub(crate) fn ok(&self, http: &mut Http, method: &str, target: &str, body: &Value) -> Value {
        let answer = self.call(http, method, target, body);
        assert_eq!(answer.status, 200, "{method} {target}: {}", String::from_utf8_lossy(&answer.body));
        answer.json()
    }

    /// What is described and was never answered: operations that did not succeed, members of answers that
    /// were never there.
    pub(crate) fn unseen(&self) -> BTreeSet<String> {
        let mut expected: BTreeSet<String> =
            self.operations().map(|operation| operation.answered(200)).collect();
        let mut names = BTreeSet::new();
        for operation in self.operations() {
            for response in operation.about["responses"].as_object().unwrap().values() {
                self.collect_names(self.resolved(response), &mut names);
            }
        }
        for name in names {
            let members = self.document["components"]["schemas"][&name]["properties"].as_object().unwrap();
            expected.extend(members.keys().map(|member| format!("{name}.{member}")));
        }
        &expected - &self.seen.borrow()
    }

    /// The schemas that this one leads to.
    fn collect_names(&self, schema: &Value, names: &mut BTreeSet<String>) {
        match schema {
            Value::Object(members) => {
                if let Some(reference) = members.get("$ref") {
                    let name = reference.as_str().unwrap().rsplit('/').next().unwrap();
                    if names.insert(name.to_owned()) {
                        self.collect_names(self.resolved(schema), names);
                    }
                }
                members.values().for_each(|value| self.collect_names(value, names));
            }
            Value::Array(values) => values.iter().for_each(|value| self.collect_names(value, names)),
            _ => {}
        }
    }

    fn operation(&self, method: &str, target: &str) -> Operation<'_> {
        let path = target.split('?').next().unwrap();
        let fits = |shape: &str| {
            let (mut parts, mut given) = (shape.split('/'), path.split('/'));
            parts.by_ref().zip(given.by_ref()).all(|(part, given)| part == given || part.starts_with('{'))
                && shape.split('/').count() == path.split('/').count()
        };
        let fitting =
            self.operations().filter(|operation| operation.method == method && fits(operation.path));
        fitting
            .min_by_key(|operation| operation.path.matches('{').count())
            .unwrap_or_else(|| panic!("{target}"))
    }

    /// What a `$ref` stands for; anything else stands for itself.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else { return value };
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        self.document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} leads nowhere"))
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let rules = schema.as_object().expect("a schema is an object");
        let wrong = |word: &str, rule: &Value| Err(format!("{value} is not {word} {rule}"));
        for (word, rule) in rules {
            let holds = match word.as_str() {
                word if SILENT.contains(&word) => true,
                "$ref" => {
                    let name = rule.as_str().unwrap().rsplit('/').next().unwrap();
                    let members = value.as_object().into_iter().flatten();
                    let there = members.filter(|(_, value)| !value.is_null());
                    self.check(self.resolved(schema), value)?;
                    self.seen.borrow_mut().extend(there.map(|(member, _)| format!("{name}.{member}")));
                    true
                }
                "type" => {
                    let mut kinds = rule
                        .as_array()
                        .map_or_else(|| vec![rule], |kinds| kinds.iter().collect())
                        .into_iter();
                    kinds.any(|kind| is_of(value, kind.as_str().unwrap()))
                }
                "enum" => rule.as_array().unwrap().contains(value),
                "const" => rule == value,
                "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
                "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
                "minLength" => length(value).is_none_or(|length| length >= rule.as_u64().unwrap()),
                "maxLength" => length(value).is_none_or(|length| length <= rule.as_u64().unwrap()),
                "items" => {
                    value.as_array().into_iter().flatten().try_for_each(|item| self.check(rule, item))?;
                    true
                }
                "anyOf" => {
                    let tried: Vec<_> =
                        rule.as_array().unwrap().iter().map(|one| self.check(one, value)).collect();
                    if tried.iter().all(Result::is_err) {
                        return Err(format!("{tried:?}"));
                    }
                    true
                }
                "required" => value.as_object().is_none_or(|members| {
                    rule.as_array().unwrap().iter().all(|name| members.contains_key(name.as_str().unwrap()))
                }),
                "properties" | "additionalProperties" => {
                    value.as_object().map_or(Ok(()), |members| self.check_members(rules, members))?;
                    true
                }
                _ => panic!("nothing here checks {word}"),
            };
            if !holds {
                return wrong(word, rule);
            }
        }
        Ok(())
    }

    /// Members that are described; all others only where it is said of what kind they are.
    fn check_members(&self, rules: &Map<String, Value>, members: &Map<String, Value>) -> Result<(), String> {
        for (name, value) in members {
            let described = rules.get("properties").and_then(|properties| properties.get(name));
            match described.or(rules.get("additionalProperties")) {
                Some(Value::Bool(true)) => {}
                Some(schema @ Value::Object(_)) => {
                    self.check(schema, value).map_err(|wrong| format!("{name}: {wrong}"))?;
                }
                _ => return Err(format!("{name} is not described")),
            }
        }
        Ok(())
    }
}

fn is_of(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("nothing is of the type {kind}"),
    }
}

fn length(value: &Value) -> Option<u64> {
    value.as_str().map(|text| text.chars().count() as u64)
}
