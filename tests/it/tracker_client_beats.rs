//! What a client's beats carry, what it hears in the answers, and on how many connections.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use remuda::tracker::api::Verb;
use remuda::{ClientConfig, SessionClient, TrackerServer};
use serde_json::{Value, json};

use crate::scripted_server::{Memory, ScriptedServer, connected, eventually, fine};
use crate::support::{GENEROUS, isolated};
use crate::tracker_support::{Http, server};

fn client_of(server: &TrackerServer) -> ClientConfig {
    SessionClient::builder("app").server_url(format!("http://{}", server.local_addr()))
}

fn quick(server: &ScriptedServer) -> ClientConfig {
    SessionClient::builder("app").server_url(server.url()).heartbeat_interval(Duration::from_millis(10))
}

isolated! {
    fn hundreds_of_beats_and_statuses_need_two_connections() {
        let server = ScriptedServer::start(Memory::default().plain());
        let client = connected(quick(&server));
        for done in (20..=300).step_by(20) {
            server.await_count(done, "POST", "/heartbeat");
            drop(client.task("work"));
        }
        assert_eq!(server.connections(), 2);
        assert!(client.is_connected());
        drop(client);
        // The farewell takes one of them.
        server.await_count(1, "DELETE", "");
        assert_eq!(server.connections(), 2);
    }
}

isolated! {
    fn parked_beats_keep_their_connection_and_a_tracker_full_of_news_is_not_flooded() {
        let memory = Memory::default();
        let rows = memory.clone();
        // Every wait ends at once with a change of the verbs.
        let server = ScriptedServer::start(move |asked| match asked.wait() {
            Some(_) => fine(json!({"kill_requested": false, "verbs_number": asked.body["beat_number"]})),
            _ => rows.answer(asked, Some(60)),
        });
        let began = Instant::now();
        let client = SessionClient::builder("app").server_url(server.url()).start().unwrap();
        // Another client is at the same time heard as often as it likes.
        let other = connected(quick(&server));
        server.await_count(200, "POST", &format!("/{}/heartbeat", other.id()));
        let own = format!("/{}/heartbeat", client.id());
        server.await_count(20, "POST", &own);
        let beats = server.count("POST", &own);
        // After 21 it rests. A beat of a second, as on a busy machine, is none that was answered at once, and
        // the count begins anew.
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
        assert!(beats <= 22 * (seconds + 2), "{beats} in {seconds} s");
        assert_eq!(server.connections(), 2);
    }
}

isolated! {
    fn beats_are_numbered_and_carry_memory_and_progress() {
        let memory = Memory::default();
        let server = ScriptedServer::start(memory.plain());
        let client = connected(quick(&server).version("1.2").protected(true));
        let registered = server.await_count(1, "POST", "/sessions").body;
        assert_eq!((&registered["version"], &registered["protected"]), (&json!("1.2"), &json!(true)));
        assert_eq!((&registered["interval_seconds"], &registered["beat_number"]), (&json!(0.01), &json!(0)));
        let beat = server.await_count(2, "POST", "/heartbeat").body;
        assert!(beat["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{beat}");
        assert!(beat.get("progress").is_none() && beat.get("kill").is_none(), "{beat}");
        let told = |wanted: f64| {
            eventually("a beat tells it", || server.asked().last().unwrap().body["progress"] == json!(wanted));
        };
        let task = client.task("long");
        task.set_progress(f64::NAN);
        task.set_progress(0.25);
        told(0.25);
        task.set_progress(7.0);
        told(1.0);
        drop(task);
        told(0.0);
        let last = server.await_count(1, "POST", "/heartbeat").body["beat_number"].as_u64().unwrap();
        memory.forget(client.id().as_str());
        let again = server.await_count(2, "POST", "/sessions").body;
        assert!(again["beat_number"].as_u64().unwrap() >= last);
        let asked = server.asked();
        let beats = asked.iter().filter(|asked| asked.is("POST", "/heartbeat"));
        let beats: Vec<_> = beats.map(|asked| asked.body["beat_number"].as_u64().unwrap()).collect();
        assert_eq!(beats, (1..=beats.len() as u64).collect::<Vec<_>>());
    }
}

isolated! {
    fn the_tracker_shows_what_the_beats_carry() {
        let server = server();
        let client = connected(client_of(&server).version("1.2").protected(true));
        let task = client.task("long");
        task.set_progress(0.5);
        let mut http = Http::connect(server.local_addr());
        let mut row = || http.row(client.id().as_str()).unwrap();
        assert_eq!((&row()["version"], &row()["pid"]), (&json!("1.2"), &json!(std::process::id())));
        assert!(row()["host"].is_string());
        eventually("a beat", || {
            let mut http = Http::connect(server.local_addr());
            let row = http.row(client.id().as_str()).unwrap();
            row["progress"] == json!(0.5) && row["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000)
        });
        // Out of reach of kill-all.
        assert_eq!(http.ok("POST", "/apps/app/kill-all", &Value::Null)["killed_count"], 0);
        assert!(!client.is_killed());
    }
}

isolated! {
    fn an_order_reaches_the_callbacks_while_the_beat_is_parked_once_and_in_order() {
        let server = server();
        let (client, other) = (connected(client_of(&server)), connected(client_of(&server)));
        let (tell, told) = mpsc::channel();
        for name in ["one", "two"] {
            let tell = tell.clone();
            client.on_verb(move |verb| tell.send((name, verb)).unwrap());
        }
        other.on_verb(|verb| panic!("{verb:?} was meant for a neighbour"));
        let mut http = Http::connect(server.local_addr());
        let mut order = |word: &str, verb: Verb| {
            http.ok("POST", &format!("/sessions/{}/{word}", client.id()), &Value::Null);
            // A beat that is not parked would be half a minute away.
            for name in ["one", "two"] {
                assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok((name, verb)));
            }
        };
        order("pause", Verb::Pause);
        assert!(client.is_paused() && !client.is_draining() && !other.is_paused());
        order("resume", Verb::Resume);
        assert!(!client.is_paused());
        order("drain", Verb::Drain);
        assert!(client.is_draining() && !client.is_killed() && !client.cancel_token().is_cancelled());
        client.stop();
        assert_eq!(told.try_recv(), Err(mpsc::TryRecvError::Empty));
        assert!(!other.is_paused() && !other.is_draining());
    }
}

isolated! {
    fn a_callback_that_is_told_to_drain_may_stop_its_client() {
        let server = server();
        let client = std::sync::Arc::new(connected(client_of(&server)));
        let inside = std::sync::Arc::downgrade(&client);
        client.on_verb(move |verb| {
            if verb == Verb::Drain {
                inside.upgrade().expect("it lives").stop();
            }
        });
        let target = format!("/sessions/{}/drain", client.id());
        Http::connect(server.local_addr()).ok("POST", &target, &Value::Null);
        eventually("the session leaves the list", || server.store().get_all_sessions().unwrap().is_empty());
        assert!(client.cancel_token().wait_timeout(GENEROUS));
    }
}

isolated! {
    fn the_interval_that_the_tracker_asks_for_is_kept_to() {
        let memory = Memory::default();
        let rows = memory.clone();
        let server = ScriptedServer::start(move |asked| match asked.body["app_name"].as_str() {
            Some("seldom") => {
                let _ = rows.answer(asked, None);
                fine(json!({"session_id": asked.body["session_id"], "interval_seconds": 3600}))
            }
            _ => rows.answer(asked, None),
        });
        let seldom = connected(quick(&server).app_name("seldom"));
        let often = connected(quick(&server));
        assert_eq!(seldom.heartbeat_interval(), Duration::from_secs(3_600));
        assert_eq!(often.heartbeat_interval(), Duration::from_millis(10));
        server.await_count(50, "POST", "/heartbeat");
        assert!(server.count("POST", &format!("/{}/heartbeat", seldom.id())) <= 1);
        drop(often);
    }
}

isolated! {
    fn a_tracker_sets_the_interval_of_the_clients_that_can_be_told() {
        let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
        let server = builder.heartbeat_interval(Duration::from_secs(40)).start().unwrap();
        let client = connected(client_of(&server));
        assert_eq!(client.heartbeat_interval(), Duration::from_secs(40));
        // The ancestors' clients say nothing of their interval and are told nothing.
        let created = Http::connect(server.local_addr()).ok("POST", "/sessions", &json!({"app_name": "old"}));
        assert!(created.get("interval_seconds").is_none(), "{created}");
    }
}

isolated! {
    fn an_interval_that_would_make_every_session_stale_is_refused() {
        for interval in [Duration::ZERO, Duration::from_secs(61), Duration::from_secs(4_000)] {
            let builder = TrackerServer::builder().listen("127.0.0.1:0").database(":memory:");
            let error = builder.heartbeat_interval(interval).start().map(drop).unwrap_err();
            assert!(error.to_string().contains("heartbeat_interval"), "{error}");
        }
    }
}
