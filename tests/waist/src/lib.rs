//! Answers `/d1` and `/object` with the cases of the contract that do not hold there.
#![cfg(target_arch = "wasm32")]
#![allow(dead_code, missing_docs, unreachable_pub)]

#[path = "../../common/contract.rs"]
mod contract;
mod edge;

// As the server's own files know it.
use verge::{log, platform};

use platform::Database;
use worker::{
    Env,
    js_sys::Reflect,
    wasm_bindgen::{self, JsValue, prelude::wasm_bindgen},
    web_sys,
};

async fn report(database: &dyn Database) -> Result<web_sys::Response, JsValue> {
    let mut broken = contract::broken(database, contract::CASES).await;
    broken.extend(contract::broken(database, contract::LIMITS).await);
    let cases = contract::CASES.len() + contract::LIMITS.len();
    let text = serde_json::json!({ "cases": cases, "broken": broken }).to_string();
    web_sys::Response::new_with_opt_str(Some(&text))
}

/// The Durable Object class: of the Worker's two databases, one is bound to it and the other is its own. It answers all requests, as
/// the server's own entry, which its library brings along, has the Worker's.
#[wasm_bindgen]
pub struct Contract {
    state: JsValue,
    env: Env,
}

#[wasm_bindgen(wasm_bindgen_futures = worker::wasm_bindgen_futures, js_sys = worker::js_sys)]
impl Contract {
    #[wasm_bindgen(constructor)]
    pub fn new(state: JsValue, env: Env) -> Self {
        Self { state, env }
    }

    pub async fn fetch(&self, request: web_sys::Request) -> Result<web_sys::Response, JsValue> {
        if request.url().ends_with("/d1") {
            return report(&edge::d1(&self.env)?).await;
        }
        report(&edge::object::database(Reflect::get(&self.state, &"storage".into())?)).await
    }
}
