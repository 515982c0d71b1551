package vmm

import "time"

var (
	SendPacket    = sendPacket
	ReceivePacket = receivePacket
	Call          = call
	WriteExit     = writeExit
	EncodeACL     = encodeACL
	ControlGroup  = controlGroup
	OOMKills      = oomKills
)

type (
	Request = request
	Reply   = reply
)

const (
	OpLaunch  = opLaunch
	OpStatus  = opStatus
	OpStop    = opStop
	MaxPacket = maxPacket
	MaxFiles  = maxFiles
	MaxExit   = maxExit
	MaxExtra  = maxExtra

	ConsoleSize   = consoleSize
	ControlSocket = controlSocket
	ExitFile      = exitFile
)

// SetGrace shortens what a supervisor waits for.
func (s *Supervisor) SetGrace(stage, launch, ready time.Duration) {
	s.grace, s.orphan, s.ready = stage, launch, ready
}

// SetGrace shortens how long processes are waited for at the end of a VM.
func (l *Launcher) SetGrace(d time.Duration) { l.grace = d }

// StartSupervisor starts one and gives it nothing.
func (l *Launcher) StartSupervisor(dir string) (*Machine, error) {
	m := newMachine(dir, l.grace)
	return m, l.startSupervisor(m)
}

func (m *Machine) SupervisorPID() int { return m.process.Pid }

// Await waits until a supervisor of StartSupervisor has ended.
func (m *Machine) Await() error {
	_, err := m.process.Wait()
	m.awaitProcesses()
	return err
}

// Sockets is the directory of the VM's sockets.
func (m *Machine) Sockets() string { return m.sockets }
