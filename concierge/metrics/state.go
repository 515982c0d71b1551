package metrics

import (
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/auberge-vm/auberge/concierge"
)

// What is told one by one. More VMs and users than these are counted, but have
// no metrics of their own: nobody may fill the database of whoever scrapes.
const (
	maxVMs   = 1000
	maxUsers = 1000
)

// A stateCollector tells how everything is when it is asked.
type stateCollector struct {
	service atomic.Pointer[concierge.Service]
	usages  usageCache

	vms, operations, silent, stateFree, runtimeFree, memoryFree, omitted *prometheus.Desc

	vmCPU, vmResident, vmMemory, vmRead, vmWritten, vmAnswered, vmSilent *prometheus.Desc

	userVMs, userMemory, userImages, userDisk, userAllocated, userLogs *prometheus.Desc
	maxVMs, maxMemory, maxDisk, maxLogs                                *prometheus.Desc
}

func newStateCollector() *stateCollector {
	about := func(subsystem string, labels ...string) func(name, help string) *prometheus.Desc {
		return func(name, help string) *prometheus.Desc {
			return prometheus.NewDesc(prometheus.BuildFQName(namespace, subsystem, name), help, labels, nil)
		}
	}
	host, vm, user := about(""), about("vm", "uid", "label", "vm"), about("user", "uid")
	return &stateCollector{
		vms:         about("", "state")("vms", "VMs by state: starting, running, suspended, stopping or lost."),
		operations:  about("", "kind")("operations_in_progress", "Operations in progress by kind."),
		silent:      host("silent_vms", "VMs whose agents did not answer when they were last called."),
		stateFree:   host("state_free_bytes", "Free space where disk images, settings and logs are."),
		runtimeFree: host("runtime_free_bytes", "Free space where running VMs have their sockets and records."),
		memoryFree:  host("host_memory_available_bytes", "Memory that the host can give to VMs."),
		omitted:     about("", "what")("omitted_series", "VMs and users without metrics of their own, because there are too many."),

		vmCPU:      vm("cpu_seconds_total", "CPU time of the VM's processes."),
		vmResident: vm("resident_bytes", "Memory that the VM's processes take of the host."),
		vmMemory:   vm("memory_bytes", "Memory that the VM was started with."),
		vmRead:     vm("disk_read_bytes_total", "Bytes that the VM's processes have read from disks. Absent where the kernel does not tell."),
		vmWritten:  vm("disk_written_bytes_total", "Bytes that the VM's processes have written to disks. Absent where the kernel does not tell."),
		vmAnswered: vm("agent_answered_timestamp_seconds", "When the VM's agent last answered a call. It is called when there is something to say."),
		vmSilent:   vm("agent_silent", "Whether the VM's agent did not answer when it was last called."),

		userVMs:       user("vms", "VMs of the user that count for max-vms."),
		userMemory:    user("memory_bytes", "Memory of the user's VMs that counts for max-memory."),
		userImages:    user("disk_images", "Disk images of the user."),
		userDisk:      user("disk_bytes", "Size of the user's disk images that counts for max-disk."),
		userAllocated: user("disk_allocated_bytes", "What the user's disk images take of the host's disk."),
		userLogs:      user("logs_bytes", "Size of the logs of the user's VMs."),
		maxVMs:        user("vms_limit", "The user's max-vms; absent when it is unlimited."),
		maxMemory:     user("memory_limit_bytes", "The user's max-memory; absent when it is unlimited."),
		maxDisk:       user("disk_limit_bytes", "The user's max-disk; absent when it is unlimited."),
		maxLogs:       user("logs_limit_bytes", "The user's max-logs; absent when it is unlimited."),
	}
}

func (c *stateCollector) watch(s *concierge.Service) { c.service.Store(s) }

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.vms, c.operations, c.silent, c.stateFree, c.runtimeFree, c.memoryFree, c.omitted,
		c.vmCPU, c.vmResident, c.vmMemory, c.vmRead, c.vmWritten, c.vmAnswered, c.vmSilent,
		c.userVMs, c.userMemory, c.userImages, c.userDisk, c.userAllocated, c.userLogs,
		c.maxVMs, c.maxMemory, c.maxDisk, c.maxLogs} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.service.Load()
	if s == nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	st := s.Stats()
	states, silent := map[string]int{}, 0
	for _, state := range concierge.VMStates() {
		states[state] = 0
	}
	for i, v := range st.VMs {
		states[v.State]++
		if v.Silent {
			silent++
		}
		if i < maxVMs {
			c.vm(ch, v)
		}
	}
	for state, n := range states {
		gauge(c.vms, float64(n), state)
	}
	gauge(c.silent, float64(silent))
	for _, kind := range concierge.OperationKinds() {
		gauge(c.operations, float64(st.Running[kind]), kind)
	}
	if st.StateFree >= 0 {
		gauge(c.stateFree, float64(st.StateFree))
	}
	if st.RuntimeFree >= 0 {
		gauge(c.runtimeFree, float64(st.RuntimeFree))
	}
	gauge(c.memoryFree, float64(st.MemoryFree))
	gauge(c.omitted, float64(max(len(st.VMs)-maxVMs, 0)), "vms")

	usages, err := c.usages.get(s)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.userDisk, err)
		return
	}
	for _, u := range usages[:min(len(usages), maxUsers)] {
		c.user(ch, u)
	}
	gauge(c.omitted, float64(max(len(usages)-maxUsers, 0)), "users")
}

func (c *stateCollector) vm(ch chan<- prometheus.Metric, v concierge.VMStats) {
	labels := []string{uid(v.UID), word(v.Label), word(v.Name)}
	tell := func(d *prometheus.Desc, t prometheus.ValueType, value float64) {
		ch <- prometheus.MustNewConstMetric(d, t, value, labels...)
	}
	tell(c.vmMemory, prometheus.GaugeValue, float64(v.Memory))
	if v.Use.HasCPU {
		tell(c.vmCPU, prometheus.CounterValue, v.Use.CPU.Seconds())
	}
	if v.Use.HasResident {
		tell(c.vmResident, prometheus.GaugeValue, float64(v.Use.Resident))
	}
	if v.Use.HasIO {
		tell(c.vmRead, prometheus.CounterValue, float64(v.Use.ReadBytes))
		tell(c.vmWritten, prometheus.CounterValue, float64(v.Use.Written))
	}
	if !v.Answered.IsZero() {
		tell(c.vmAnswered, prometheus.GaugeValue, float64(v.Answered.UnixMicro())/1e6)
	}
	silent := 0.0
	if v.Silent {
		silent = 1
	}
	tell(c.vmSilent, prometheus.GaugeValue, silent)
}

func (c *stateCollector) user(ch chan<- prometheus.Metric, u concierge.Usage) {
	tell := func(d *prometheus.Desc, value uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(value), uid(u.UID))
	}
	tell(c.userVMs, u.VMs)
	tell(c.userMemory, u.Memory)
	tell(c.userImages, uint64(u.Images))
	tell(c.userDisk, u.Disk)
	tell(c.userAllocated, u.Allocated)
	tell(c.userLogs, u.Logs)
	for d, limit := range map[*prometheus.Desc]uint64{
		c.maxVMs: u.Limits.VMs, c.maxMemory: u.Limits.Memory, c.maxDisk: u.Limits.Disk, c.maxLogs: u.Limits.Logs,
	} {
		if limit != concierge.Unlimited {
			tell(d, limit)
		}
	}
}

func uid(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// word makes a name of a user's fit for a label, so that no two names become
// one. Their length is bounded where they come in.
func word(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
