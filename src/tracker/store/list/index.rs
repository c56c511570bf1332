//! Pages along an index.

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::cursor::Place;
use super::{GLANCES, Page};
use crate::tracker::TrackedStatus;
use crate::tracker::api::{SessionQuery, SortKey};
use crate::tracker::store::rows;

/// A way through the table: by a column of texts, if it has one, and then by the start and the row.
#[derive(Clone, Copy)]
pub(super) struct Index {
    name: &'static str,
    column: Option<&'static str>,
    /// How a text is written that the column is held against.
    parameter: &'static str,
    /// No two sessions have the same text.
    is_unique: bool,
    /// What every session in it fulfils.
    condition: Option<&'static str>,
}

const START: Index = Index {
    name: "remuda_sessions_by_start",
    column: None,
    parameter: "?1",
    is_unique: false,
    condition: None,
};
pub(super) const APP: Index = Index { name: "remuda_sessions_by_app", column: Some("app_name"), ..START };
pub(super) const USER: Index = Index { name: "remuda_sessions_by_user", column: Some("user_key"), ..START };
/// Those who are not idle.
const BUSY: Index = Index { name: "remuda_busy_sessions", condition: Some("status <> 'idle'"), ..START };
/// SQLite's own.
const ID: Index =
    Index { name: "sqlite_autoindex_sessions_1", column: Some("session_id"), is_unique: true, ..START };

impl Index {
    /// The part of a statement that takes this way, and stays where its column is the first parameter.
    pub(super) fn equal(&self) -> String {
        let Index { name, column, parameter, .. } = self;
        format!("INDEXED BY {name} WHERE {} = {parameter}", column.unwrap_or("start_time"))
    }
}

/// The way for this query, and the text at which it stays if it does.
fn way(query: &SessionQuery) -> (Index, Option<&str>) {
    let is_busy = query.status.as_ref().is_some_and(|status| *status != TrackedStatus::Idle)
        || query.state == Some(TrackedStatus::Running);
    match (query.sort.key, &query.app, &query.user, is_busy) {
        (SortKey::Id, ..) => (ID, None),
        (SortKey::StartTime | SortKey::App, Some(app), ..) => (APP, Some(app)),
        (SortKey::StartTime | SortKey::User, _, Some(user), _) => (USER, Some(user)),
        (SortKey::App, ..) => (APP, None),
        (SortKey::User, ..) => (USER, None),
        (_, _, _, true) => (BUSY, None),
        _ => (START, None),
    }
}

/// Reads a page; whether the list ends with it.
pub(super) fn read(page: &mut Page<'_>, tables: &Connection, from: Option<&Place>) -> rusqlite::Result<bool> {
    let (text, parameters) = statement(page.query, from);
    let mut statement = tables.prepare_cached(&text)?;
    let mut rows = statement.query(params_from_iter(parameters))?;
    let mut glances = 0;
    while let Some(row) = rows.next()? {
        if page.is_full() || glances == GLANCES {
            return Ok(false);
        }
        glances += 1;
        let text = row.get(rows::ROW + 1)?;
        let place = Place { text, millis: row.get(rows::START)?, row: row.get(rows::ROW)? };
        page.take(row)?;
        page.last = Some(place);
    }
    Ok(true)
}

/// The statement that goes on behind a place, and its parameters.
fn statement(query: &SessionQuery, from: Option<&Place>) -> (String, Vec<Value>) {
    let (index, equal) = way(query);
    let (comparison, direction) = if query.sort.descending { ("<", "DESC") } else { (">", "ASC") };
    let (mut conditions, mut parameters) = (Vec::from_iter(index.condition.map(str::to_owned)), Vec::new());
    let mut columns = Vec::new();
    if let (Some(column), Some(text)) = (index.column, equal) {
        conditions.push(format!("{column} = {}", index.parameter));
        parameters.push(Value::from(text.to_owned()));
    } else {
        columns.extend(index.column);
    }
    if let Some(beginning) = &query.id {
        conditions.push("session_id >= ? AND session_id <= ?".to_owned());
        parameters.push(Value::from(beginning.clone()));
        parameters.push(Value::from(format!("{beginning}{}", char::MAX)));
    }
    let is_by_text = !columns.is_empty();
    if !index.is_unique {
        columns.extend(["start_time", "row"]);
    }
    if let Some(Place { text, millis, row }) = from {
        let places = vec!["?"; columns.len()].join(", ");
        conditions.push(format!("({}) {comparison} ({places})", columns.join(", ")));
        parameters.extend(is_by_text.then(|| Value::from(text.clone())));
        if !index.is_unique {
            parameters.extend([Value::from(*millis), Value::from(*row)]);
        }
    }
    let conditions = if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") };
    let order: Vec<String> = columns.iter().map(|column| format!("{column} {direction}")).collect();
    let sorted_by = match query.sort.key {
        SortKey::App => APP.column,
        SortKey::User => USER.column,
        SortKey::Id => ID.column,
        _ => None,
    };
    let (wanted, key, name, order) = (rows::COLUMNS, sorted_by.unwrap_or("''"), index.name, order.join(", "));
    let text =
        format!("SELECT {wanted}, {key} FROM sessions INDEXED BY {name} WHERE {conditions} ORDER BY {order}");
    (text, parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracker::api::SessionSort;
    use crate::tracker::store::schema;

    /// SQLite is never left to sort or to search: each step of the way is a step of an index.
    #[test]
    fn every_way_is_an_index_and_sorts_nothing() {
        let mut tables = Connection::open_in_memory().unwrap();
        schema::prepare(&mut tables).unwrap();
        let place = Place { text: "a".to_owned(), millis: 1, row: 1 };
        let all = SessionQuery::new;
        for query in [
            all(),
            all().app("a"),
            all().user("u"),
            all().app("a").user("u").status(TrackedStatus::Running),
            all().status(TrackedStatus::Running),
            all().status(TrackedStatus::Idle),
            all().state(TrackedStatus::Running),
            all().id("b"),
        ] {
            for key in [SortKey::StartTime, SortKey::App, SortKey::User, SortKey::Id] {
                for (descending, from) in
                    [(false, None), (true, None), (false, Some(&place)), (true, Some(&place))]
                {
                    if query.id.is_some() && key != SortKey::Id {
                        continue;
                    }
                    let query = query.clone().sort(SessionSort { key, descending });
                    let (text, parameters) = statement(&query, from);
                    let mut explain = tables.prepare(&format!("EXPLAIN QUERY PLAN {text}")).unwrap();
                    let plan: Vec<String> = explain
                        .query_map(params_from_iter(parameters), |row| row.get(3))
                        .unwrap()
                        .collect::<Result<_, _>>()
                        .unwrap();
                    let [plan] = plan.as_slice() else { panic!("{text}: {plan:?}") };
                    let narrowed = from.is_some() || way(&query).1.is_some() || query.id.is_some();
                    let expected = if narrowed { "SEARCH sessions USING INDEX" } else { "USING INDEX" };
                    assert!(plan.contains(expected), "{text}: {plan}");
                    if from.is_some() && !way(&query).0.is_unique {
                        assert!(plan.contains("start_time"), "it starts at the place: {text}: {plan}");
                    }
                }
            }
        }
    }
}
