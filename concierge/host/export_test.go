package host

import "github.com/vishvananda/netlink"

// Overflow ends what tells of routes, as the kernel does when nobody reads.
func (w *Watcher) Overflow() {
	ended := make(chan netlink.RouteUpdate)
	close(ended)
	w.routes = ended
}

// Hears says whether anything tells of routes.
func (w *Watcher) Hears() bool { return w.routes != nil && !w.deaf }
