//! Integration tests: real processes, real pipes, real kills.
//!
//! One binary, one module per subject. Every test runs in a process of its own and ends with the
//! proof that it left nothing behind: see [`support`].

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is a failure")]

mod hostile_worker;
mod scripted_server;
mod support;

mod browser;
mod cli_exec;
mod cli_kill;
mod cli_run;
mod cli_samples;
mod cli_stop;
mod cli_tracked;
mod dashboard;
mod native_basics;
mod native_stop;
mod native_support;
mod native_wire;
mod node_abuse;
mod node_basics;
mod node_state;
mod node_stop;
mod panel_defects;
mod pool_abuse;
mod pool_basics;
mod pool_end;
mod pool_events;
mod pool_failures;
mod pool_handover;
mod pool_metrics;
mod pool_observed;
mod pool_operate;
mod pool_probes;
mod pool_review;
mod pool_scope;
mod pool_storms;
mod pool_stress;
mod pool_tenants;
mod protocol_check;
mod python_abuse;
mod python_events;
mod python_state;
mod python_stdio;
mod python_values;
mod runtime_prefix;
mod runtime_remote;
mod session_abuse;
mod session_basics;
mod session_files;
mod session_hostile;
mod session_interrupt;
mod session_liars;
mod session_limits;
mod session_races;
mod session_start;
mod session_stop;
mod session_streaming;
mod template_basics;
mod template_ends;
mod template_pool;
mod testing_kit;
mod tidy;
mod tracker_client_basics;
mod tracker_client_beats;
mod tracker_client_group;
mod tracker_client_lost;
mod tracker_client_trouble;
mod tracker_crash;
mod tracker_disk;
mod tracker_http_rows;
mod tracker_life;
mod tracker_operator_pages;
mod tracker_pages;
mod tracker_pair;
mod tracker_receipts;
mod tracker_server_batch;
mod tracker_server_http;
mod tracker_server_parked;
mod tracker_server_program;
mod tracker_server_routes;
mod tracker_support;
