package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/auberge-vm/auberge/concierge"
	"github.com/auberge-vm/auberge/guestlink"
)

const namespace = "auberge"

// Buckets of the histograms, in seconds. Calls of the bus take from a fraction
// of a millisecond to minutes, starts of VMs from one second to minutes.
var (
	callBuckets  = []float64{.0005, .001, .0025, .01, .05, .25, 1, 5, 30, 120}
	startBuckets = []float64{.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300}
)

// Metrics are those of one service. It is a concierge.Observer, and its
// BusMethod serves for the observer of the bus.
type Metrics struct {
	registry *prometheus.Registry

	busCalls   *prometheus.CounterVec
	busSeconds *prometheus.HistogramVec

	guestCalls   *prometheus.CounterVec
	guestSeconds *prometheus.HistogramVec

	operations   *prometheus.CounterVec
	startSeconds *prometheus.HistogramVec

	state *stateCollector
}

var _ concierge.Observer = (*Metrics)(nil)

// New makes metrics that know no service yet.
func New() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), state: newStateCollector()}
	m.busCalls = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: "dbus", Name: "calls_total",
		Help: "Calls of methods on D-Bus by outcome: ok, failed (the response says why) or error (a D-Bus error)."}, []string{"interface", "method", "outcome"})
	m.busSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Subsystem: "dbus", Name: "call_duration_seconds",
		Help: "How long methods on D-Bus took to answer.", Buckets: callBuckets}, []string{"interface", "method"})
	m.guestCalls = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Subsystem: "guest", Name: "calls_total",
		Help: "Calls to the agents of guests by gRPC code."}, []string{"method", "code"})
	m.guestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Subsystem: "guest", Name: "call_duration_seconds",
		Help: "How long agents of guests took to answer.", Buckets: callBuckets}, []string{"method"})
	m.operations = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "operations_total",
		Help: "Operations that have ended, by kind and outcome."}, []string{"kind", "outcome"})
	m.startSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Subsystem: "vm", Name: "start_duration_seconds",
		Help: "How long VMs took from the request to a configured guest, by outcome.", Buckets: startBuckets}, []string{"outcome"})
	m.registry.MustRegister(m.busCalls, m.busSeconds, m.guestCalls, m.guestSeconds, m.operations, m.startSeconds, m.state,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Registry is what gathers everything.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// Watch tells of a service from now on.
func (m *Metrics) Watch(s *concierge.Service) { m.state.watch(s) }

// BusMethod returns what is told of the calls of one method on the bus.
func (m *Metrics) BusMethod(iface, member string) func(took time.Duration, outcome string) {
	seconds := m.busSeconds.WithLabelValues(iface, member)
	calls := map[string]prometheus.Counter{}
	for _, o := range []string{"ok", "failed", "error"} {
		calls[o] = m.busCalls.WithLabelValues(iface, member, o)
	}
	return func(took time.Duration, outcome string) {
		seconds.Observe(took.Seconds())
		if c := calls[outcome]; c != nil {
			c.Inc()
		}
	}
}

// GuestCalled implements concierge.Observer.
func (m *Metrics) GuestCalled(c guestlink.Call) {
	m.guestSeconds.WithLabelValues(c.Method).Observe(c.Took.Seconds())
	m.guestCalls.WithLabelValues(c.Method, c.Code).Inc()
}

// OperationEnded implements concierge.Observer.
func (m *Metrics) OperationEnded(kind, status string, took time.Duration) {
	m.operations.WithLabelValues(kind, status).Inc()
	if kind == startKind {
		m.startSeconds.WithLabelValues(status).Observe(took.Seconds())
	}
}

// startKind is the operation that starts a VM.
var startKind = concierge.OperationKinds()[0]

// usagePause is how long what users have is not looked at again: that reads
// the sizes of all images.
const usagePause = 30 * time.Second

// usageCache remembers what users have.
type usageCache struct {
	mu   sync.Mutex
	at   time.Time
	last []concierge.Usage
	err  error
}

func (c *usageCache) get(s *concierge.Service) ([]concierge.Usage, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at.IsZero() || time.Since(c.at) > usagePause {
		c.last, c.err = s.Usages()
		c.at = time.Now()
	}
	return c.last, c.err
}
