//! The Client-Server API, endpoint by endpoint, against servers in memory.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod backup;
mod by_time;
mod conformance;
mod context;
mod cross_signing;
mod dehydrated;
mod devices;
mod elsewhere;
mod ending;
mod faster_joins;
pub mod gaps;
mod holes;
mod home;
mod ignoring;
mod invite_permission;
mod inviting;
mod joining;
mod keys;
mod knocking;
mod lazy_loading;
mod leaving;
mod logging;
mod media;
mod new_shares;
mod openid;
mod outside;
mod people;
mod presence;
mod profiles;
mod published;
mod push_rules;
mod receipts;
mod refreshing;
mod relating;
mod remote_media;
mod reporting;
mod rooms;
mod searching;
mod spaces;
mod syncing;
mod tags;
mod tampering;
mod threading;
mod throttling;
mod thumbnails;
mod to_device;
mod typing;
mod unread;
mod upgrading;
mod user_directory;
mod visited;
mod waiting;
