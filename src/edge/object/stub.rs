//! The way from the Worker to the object.

use serde_json::{Value, json};
use worker::{
    Env,
    js_sys::{Promise, Reflect},
    wasm_bindgen::{self, JsCast, JsValue, prelude::wasm_bindgen},
    wasm_bindgen_futures::JsFuture,
    web_sys,
};

use crate::{
    config::Config,
    edge::{
        events::Settings,
        moving::side::{Side, Sql, read_rows, write_statements},
        sql_error,
        stream::describe,
    },
    platform::{DatabaseError, LocalBoxFuture, Rows},
};

/// The path by which a move reaches the object's database, with the secret.
pub(super) const DATABASE: &str = "/database";

// The few methods of the binding that are used.
#[wasm_bindgen]
extern "C" {
    type Namespace;
    #[wasm_bindgen(method, structural, catch, js_name = idFromName)]
    fn id_from_name(this: &Namespace, name: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, structural, catch)]
    fn get(this: &Namespace, id: &JsValue) -> Result<Stub, JsValue>;

    pub(super) type Stub;
    #[wasm_bindgen(method, structural, catch)]
    pub(super) fn fetch(this: &Stub, request: &web_sys::Request) -> Result<Promise, JsValue>;
}

/// The object of this deployment.
pub(super) fn object(env: &Env, config: &Config) -> Result<Stub, JsValue> {
    let binding = Reflect::get(env, &"OBJECT".into())?;
    if !binding.is_object() {
        return Err("there is no Durable Object bound as OBJECT; wrangler.toml must bind one".into());
    }
    let namespace: Namespace = binding.unchecked_into();
    // One object is one homeserver: its name is the server's.
    let id = namespace.id_from_name(config.server_name.as_str())?;
    namespace.get(&id)
}

/// The object's database, as a move sees it from the Worker.
pub(in crate::edge) struct ObjectSide {
    object: Stub,
    authorization: String,
}

impl ObjectSide {
    /// That of this deployment.
    pub(in crate::edge) fn of(env: &Env, settings: &Settings) -> Result<Self, JsValue> {
        let authorization = format!("Bearer {}", settings.move_secret.as_deref().unwrap_or_default());
        Ok(Self { object: object(env, &settings.config)?, authorization })
    }

    async fn ask(&self, body: Value) -> Result<Value, DatabaseError> {
        let init = web_sys::RequestInit::new();
        init.set_method("POST");
        init.set_body(&body.to_string().into());
        let asked = async {
            let request = web_sys::Request::new_with_str_and_init(&format!("https://object{DATABASE}"), &init)?;
            request.headers().set("authorization", &self.authorization)?;
            let response: web_sys::Response = JsFuture::from(self.object.fetch(&request)?).await?.unchecked_into();
            JsFuture::from(response.text()?).await
        };
        let text = asked.await.map_err(|error| DatabaseError::Unavailable(describe(&error)))?;
        let answer: Option<Value> = text.as_string().and_then(|text| serde_json::from_str(&text).ok());
        let answer = answer.ok_or_else(|| DatabaseError::Shape("the object's answer is no JSON".to_owned()))?;
        match answer["error"].as_str() {
            Some(error) => Err(sql_error::kind(error.to_owned())),
            None => Ok(answer),
        }
    }
}

impl Side for ObjectSide {
    fn batch(&self, statements: Vec<Sql>) -> LocalBoxFuture<'_, Result<Vec<Rows>, DatabaseError>> {
        Box::pin(async move {
            let answer = self.ask(json!({ "statements": write_statements(&statements) })).await?;
            read_rows(&answer["results"]).ok_or_else(|| DatabaseError::Shape("the object gives no rows".to_owned()))
        })
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), DatabaseError>> {
        Box::pin(async move { self.ask(json!({ "migrate": true })).await.map(drop) })
    }
}
