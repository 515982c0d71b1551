// Package metrics measures the concierge for Prometheus and serves what it
// measures on a Unix socket. It never decides anything; a scrape reads a few
// small files for each VM and, once in a while, the sizes of disk images.
package metrics
