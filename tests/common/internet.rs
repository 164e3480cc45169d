//! A scripted internet for tests of discovery and keys: web sites, an SRV zone and a resolver that speaks JSON, one
//! clock that only the test moves, and a list of everything that was asked.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use bytes::Bytes;
use serde_json::json;
use verge::{
    log::LogRecord,
    platform::{
        Background, Clock, LocalBoxFuture, Log, OutboundRequest, Platform, Random, Transport, TransportError,
        news::Polling,
    },
};

use super::sqlite::Sqlite;

/// Where the resolver is.
pub const RESOLVER: &str = "https://resolver.net/dns-query";

/// What a site answers.
pub type Site = Rc<dyn Fn(&OutboundRequest) -> Result<http::Response<Bytes>, TransportError>>;

/// The internet of one test.
pub struct Internet {
    /// Milliseconds since the epoch.
    pub now: Cell<i64>,
    /// What is asked for along the way costs so long.
    pub delay_ms: Cell<i64>,
    /// Pages by `https://host[:port]/path?query`, else by `https://host[:port]`.
    pub sites: RefCell<BTreeMap<String, Site>>,
    /// SRV records by name, as the resolver writes them; `Err` is a DNS status.
    pub srv: RefCell<BTreeMap<String, Result<Vec<String>, i64>>>,
    /// What the resolver answers instead of looking.
    pub resolver: RefCell<Option<Site>>,
    /// Whether a connection may be made to another name than the certificate's.
    pub tls_names: Cell<bool>,
    /// Everything asked: `METHOD https://host[:port]/path?query`.
    pub asked: RefCell<Vec<String>>,
    /// The requests themselves.
    pub requests: RefCell<Vec<OutboundRequest>>,
    /// What operators would read.
    pub logged: RefCell<Vec<String>>,
    /// Requests under way, and the most there ever were.
    pub under_way: Cell<(usize, usize)>,
    random: Cell<u64>,
}

impl Internet {
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(1_700_000_000_000),
            delay_ms: Cell::new(0),
            sites: RefCell::default(),
            srv: RefCell::default(),
            resolver: RefCell::default(),
            tls_names: Cell::new(true),
            asked: RefCell::default(),
            requests: RefCell::default(),
            logged: RefCell::default(),
            under_way: Cell::default(),
            random: Cell::new(0x2545_f491_4f6c_dd1d),
        })
    }

    /// A server's view of this internet, over `database`.
    pub fn platform(self: &Rc<Self>, database: &Sqlite) -> Platform {
        Platform {
            database: Rc::new(database.clone()),
            transport: Rc::new(View(self.clone())),
            news: Rc::new(Polling::new(Rc::new(View(self.clone())))),
            clock: Rc::new(View(self.clone())),
            random: Rc::new(View(self.clone())),
            background: Rc::new(View(self.clone())),
            media: None,
            log: Rc::new(View(self.clone())),
        }
    }

    pub fn serve(
        &self,
        url: &str,
        site: impl Fn(&OutboundRequest) -> Result<http::Response<Bytes>, TransportError> + 'static,
    ) {
        self.sites.borrow_mut().insert(url.to_owned(), Rc::new(site));
    }

    /// How often something that contains `what` was asked.
    pub fn times_asked(&self, what: &str) -> usize {
        self.asked.borrow().iter().filter(|asked| asked.contains(what)).count()
    }

    fn answer(&self, request: &OutboundRequest) -> Result<http::Response<Bytes>, TransportError> {
        let host = match request.connect_host.contains(':') {
            true => format!("[{}]", request.connect_host),
            false => request.connect_host.clone(),
        };
        let port = if request.connect_port == 443 { String::new() } else { format!(":{}", request.connect_port) };
        let site = format!("https://{host}{port}");
        let url = format!("{site}{}", request.request.uri());
        self.asked.borrow_mut().push(format!("{} {url}", request.request.method()));
        self.requests.borrow_mut().push(request.clone());
        if !self.tls_names.get() && request.tls_name != request.connect_host {
            return Err(TransportError::Unsupported("no certificate of another name".to_owned()));
        }
        if let Some(query) = url.strip_prefix(RESOLVER) {
            return self.resolve(request, query);
        }
        let page = {
            let sites = self.sites.borrow();
            sites.get(&url).or_else(|| sites.get(&site)).cloned()
        };
        let response = match page {
            Some(page) => page(request)?,
            None => return Err(TransportError::Failed(format!("{site} is not there"))),
        };
        if response.body().len() > request.max_response_bytes {
            return Err(TransportError::TooLarge);
        }
        Ok(response)
    }

    fn resolve(&self, request: &OutboundRequest, query: &str) -> Result<http::Response<Bytes>, TransportError> {
        if let Some(instead) = self.resolver.borrow().clone() {
            return instead(request);
        }
        // Real resolvers answer in wire format, or not at all, without these.
        assert_eq!(request.request.headers().get("accept").unwrap(), "application/dns-json");
        let name = query.strip_prefix("?name=").and_then(|query| query.strip_suffix("&type=SRV")).unwrap();
        let zone = self.srv.borrow();
        let answer = match zone.get(name) {
            None => json!({ "Status": 3, "TC": false, "Question": [{ "name": name, "type": 33 }] }),
            Some(Err(status)) => json!({ "Status": status }),
            Some(Ok(records)) => {
                let answer = |data: &String| json!({ "name": name, "type": 33, "TTL": 300, "data": data });
                let records: Vec<_> = records.iter().map(answer).collect();
                json!({ "Status": 0, "TC": false, "AD": false, "Answer": records })
            }
        };
        Ok(page(200, &[], &answer.to_string()))
    }
}

/// A response.
pub fn page(status: u16, headers: &[(&str, &str)], body: &str) -> http::Response<Bytes> {
    let mut response = http::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Bytes::from(body.to_owned())).unwrap()
}

struct View(Rc<Internet>);

impl Transport for View {
    fn send(&self, request: OutboundRequest) -> LocalBoxFuture<'_, Result<http::Response<Bytes>, TransportError>> {
        Box::pin(async move {
            let (now, most) = self.0.under_way.get();
            self.0.under_way.set((now + 1, most.max(now + 1)));
            // Lets others begin, so that what is sent at the same time is seen to be.
            for _ in 0..8 {
                yield_now().await;
            }
            let (now, most) = self.0.under_way.get();
            self.0.under_way.set((now - 1, most));
            if self.0.delay_ms.get() > i64::from(request.timeout_ms) {
                self.0.now.set(self.0.now.get() + i64::from(request.timeout_ms));
                return Err(TransportError::TimedOut);
            }
            self.0.now.set(self.0.now.get() + self.0.delay_ms.get());
            self.0.answer(&request)
        })
    }
}

impl Clock for View {
    fn now_ms(&self) -> i64 {
        self.0.now.get()
    }

    fn sleep(&self, ms: u32) -> LocalBoxFuture<'static, ()> {
        let internet = self.0.clone();
        Box::pin(async move {
            internet.now.set(internet.now.get() + i64::from(ms));
            yield_now().await;
        })
    }
}

impl Random for View {
    fn fill(&self, bytes: &mut [u8]) {
        for byte in bytes {
            // xorshift64*
            let mut x = self.0.random.get();
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            self.0.random.set(x);
            *byte = (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8;
        }
    }
}

impl Background for View {
    fn spawn(&self, work: LocalBoxFuture<'static, ()>) {
        futures_executor::block_on(work);
    }
}

impl Log for View {
    fn write(&self, record: LogRecord) {
        self.0.logged.borrow_mut().push(record.to_string());
    }
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}
