package testhost

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// PowerPath is where a served host takes a power action: the request's body is
// off, reboot, crash, start, sleep, wake or check.
const PowerPath = "/power"

// transport sends requests to the agent of the machine that runs now.
type transport struct{ *Host }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	m, err := t.current()
	if err != nil {
		return nil, err
	}
	return m.client.Transport.RoundTrip(r)
}

// Handler lets other programs use the host: what it takes is what the agent
// takes, and PowerPath.
func (h *Host) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(wire.URL("")) },
		FlushInterval: -1,
		Transport:     transport{h},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	})
	mux.HandleFunc("POST "+PowerPath, func(w http.ResponseWriter, r *http.Request) {
		if err := h.power(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}

func (h *Host) power(r *http.Request) error {
	ctx := r.Context()
	switch action := r.FormValue("do"); action {
	case "off":
		return h.PowerOff(ctx)
	case "reboot":
		return h.Reboot(ctx)
	case "crash":
		h.Crash()
		return nil
	case "start":
		return h.Start(ctx)
	case "sleep":
		return h.Sleep(ctx)
	case "wake":
		return h.Wake(ctx)
	case "check":
		return h.CheckDisk(ctx)
	default:
		return fmt.Errorf("a test host cannot %q", action)
	}
}

// Attach returns a host that another program serves. Only what Handler offers
// can be done with it.
func Attach(socket string) *Host {
	client := &http.Client{Transport: wire.Transport(func() (net.Conn, error) { return net.Dial("unix", socket) })}
	return &Host{running: &machine{client: client}}
}
