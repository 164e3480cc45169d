//! The only place that names Cloudflare.
