//! Files that are damaged, foreign or too new: said clearly, and never made worse.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use super::tests::Directory;
use super::*;

/// SQLite's, unless told otherwise.
const PAGE: usize = 4096;

fn fault(result: Result<impl Sized>) -> Option<StoreFault> {
    match result {
        Err(Error::Store { fault, .. }) => Some(fault),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    }
}

/// A database of many pages that was closed in good order.
fn filled(directory: &Directory) -> Vec<u8> {
    let store = directory.open();
    for _ in 0..60 {
        store.create_session(&"a".repeat(1_000), None).unwrap();
    }
    drop(store);
    fs::read(directory.database()).unwrap()
}

#[test]
fn a_damaged_file_is_refused_with_that_fault_and_not_one_byte_of_it_changes() {
    let directory = Directory::new();
    let whole = filled(&directory);
    assert!(whole.len() > 20 * PAGE);
    let garbage = |from: usize, to: usize| {
        let mut bytes = whole.clone();
        bytes[from..to].fill(0x5a);
        bytes
    };
    for (name, bytes, expected) in [
        ("the tables' pages are garbage", garbage(PAGE, whole.len()), StoreFault::Damaged),
        ("the schema is garbage", garbage(100, PAGE), StoreFault::Damaged),
        ("the second half is missing", whole[..whole.len() / PAGE / 2 * PAGE].to_vec(), StoreFault::Damaged),
        ("the header is garbage", garbage(0, 16), StoreFault::Foreign),
        ("text", b"hello, I am no database".repeat(100), StoreFault::Foreign),
        ("a picture", b"\x89PNG\r\n\x1a\n".repeat(1_000), StoreFault::Foreign),
    ] {
        fs::write(directory.database(), &bytes).unwrap();
        let opened = SessionStore::open(directory.database());
        let said = opened.as_ref().expect_err(name).to_string();
        assert!(said.contains("tracker.db"), "it names the file: {said}");
        assert_eq!(fault(opened), Some(expected), "{name}: {said}");
        assert!(fs::read(directory.database()).unwrap() == bytes, "{name}: the file was changed");
    }
    fs::write(directory.database(), &whole).unwrap();
    assert_eq!(directory.open().get_all_sessions().unwrap().len(), 60);
}

#[test]
fn a_file_of_another_version_program_or_tracker_has_its_own_fault() {
    let directory = Directory::new();
    let store = directory.open();
    assert_eq!(fault(SessionStore::open(directory.database())), Some(StoreFault::InUse));
    drop(store);
    directory.raw().pragma_update(None, "user_version", 1_000).unwrap();
    let before = fs::read(directory.database()).unwrap();
    assert_eq!(fault(SessionStore::open(directory.database())), Some(StoreFault::Newer));
    assert!(fs::read(directory.database()).unwrap() == before, "the file was changed");
    directory.raw().pragma_update(None, "application_id", 7).unwrap();
    assert_eq!(fault(SessionStore::open(directory.database())), Some(StoreFault::Foreign));
    assert_eq!(fault(SessionStore::open(directory.0.join("no/such/directory"))), Some(StoreFault::Io));
    assert_eq!(fault(SessionStore::open(&directory.0)), Some(StoreFault::Io), "a directory");
}

/// Half a write to the log, as a crash leaves it, is no damage.
#[test]
fn a_torn_log_is_read_up_to_its_last_whole_change() {
    let directory = Directory::new();
    let store = directory.open();
    let first = store.create_session("first", None).unwrap();
    let log = directory.0.join("tracker.db-wal");
    let whole = fs::metadata(&log).unwrap().len();
    store.create_session("second", None).unwrap();
    let (database, bytes) = (fs::read(directory.database()).unwrap(), fs::read(&log).unwrap());
    drop(store);
    for cut in [whole + 1, whole + 100, u64::try_from(bytes.len()).unwrap() - 1] {
        fs::write(directory.database(), &database).unwrap();
        fs::write(&log, &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let store = directory.open();
        let rows = store.get_all_sessions().unwrap();
        assert_eq!((rows.len(), &rows[0].session_id), (1, &first), "cut at {cut}");
    }
}

#[test]
fn damage_that_comes_while_it_runs_is_told_and_readiness_stays_down() {
    let directory = Directory::new();
    filled(&directory);
    let store = directory.open();
    store.check().unwrap();
    let mut file = File::options().read(true).write(true).open(directory.database()).unwrap();
    let mut whole = Vec::new();
    file.read_to_end(&mut whole).unwrap();
    file.seek(SeekFrom::Start(PAGE as u64)).unwrap();
    file.write_all(&vec![0x5a; whole.len() - PAGE]).unwrap();
    assert_eq!(fault(store.get_all_sessions()), Some(StoreFault::Damaged));
    assert_eq!(fault(store.check()), Some(StoreFault::Damaged));
    // Whatever writes may still succeed elsewhere in the file.
    let _ = store.create_session("a", None);
    assert_eq!(fault(store.check()), Some(StoreFault::Damaged));
}

#[test]
fn a_database_of_every_earlier_version_is_brought_up_to_date_with_its_rows() {
    for version in 0..=schema::MIGRATIONS.len() {
        let directory = Directory::new();
        schema::create_version(&mut directory.raw(), version).unwrap();
        if version > 0 {
            directory
                .raw()
                .execute_batch(
                    "INSERT INTO sessions (session_id, app_name, start_time, status, kill_requested)
                     VALUES ('one', 'a', 1767323045000, 'running', 1);
                     INSERT INTO beats SELECT row, 1767323046000 FROM sessions;",
                )
                .unwrap();
        }
        let store = directory.open();
        let rows = store.get_all_sessions().unwrap();
        assert_eq!(rows.len(), usize::from(version > 0), "version {version}");
        if let [row] = rows.as_slice() {
            assert_eq!(
                (row.session_id.as_str(), row.app_name.as_str(), row.kill_requested),
                ("one", "a", true)
            );
            assert_eq!(row.start_time, "2026-01-02T03:04:05.000+00:00");
        }
        store.create_session("b", None).unwrap();
        drop(store);
        let now: u32 = directory.raw().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(now as usize, schema::MIGRATIONS.len());
    }
}

#[test]
fn a_migration_that_fails_leaves_the_old_tables_as_they_were() {
    let directory = Directory::new();
    let old = "CREATE TABLE sessions (session_id TEXT, app_name TEXT)";
    directory
        .raw()
        .execute_batch(&format!(
            "{old}; CREATE TABLE ancestor_sessions (in_the_way); INSERT INTO sessions VALUES ('x', 'a')"
        ))
        .unwrap();
    assert_eq!(fault(SessionStore::open(directory.database())), Some(StoreFault::Other));
    let (sql, rows): (String, i64) = directory
        .raw()
        .query_row(
            "SELECT sql, (SELECT count(*) FROM sessions) FROM sqlite_schema WHERE name = 'sessions'",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert_eq!((sql.as_str(), rows), (old, 1));
}
