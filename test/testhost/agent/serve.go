package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// servePort serves whoever is at the other end of the virtio-serial port.
func servePort() error {
	port, err := openPort()
	if err != nil {
		return err
	}
	defer port.Close()
	if _, err := port.WriteString(wire.Greeting); err != nil {
		return err
	}
	forgetSystemd()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.ExecPath, func(w http.ResponseWriter, r *http.Request) {
		exec, err := readExec(r)
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusBadRequest)
		case exec.Session != "":
			inSession(exec.Session).ServeHTTP(w, r)
		default:
			runCommand(w, r, exec)
		}
	})
	mux.HandleFunc("POST "+wire.LoginPath, answer(login))
	mux.HandleFunc("POST "+wire.LogoutPath, answer(logout))
	server := wire.Server(mux)
	err = server.Serve(wire.NewSingle(wire.FileConn{File: port}))
	return fmt.Errorf("cannot serve the port any more: %w", err)
}

// openPort finds the port by its name.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		name, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(name)) == wire.Port {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(file))), os.O_RDWR, 0)
		}
	}
	return nil, errors.New("the machine has no virtio-serial port " + wire.Port)
}

func readExec(r *http.Request) (wire.Exec, error) {
	var exec wire.Exec
	err := json.Unmarshal([]byte(r.Header.Get(wire.ExecHeader)), &exec)
	if err == nil && len(exec.Args) == 0 {
		err = errors.New("a command without words")
	}
	return exec, err
}

// answer makes a handler of a function that takes a login and may fail.
func answer(do func(wire.Login) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var l wire.Login
		err := json.NewDecoder(r.Body).Decode(&l)
		if err == nil {
			err = do(l)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

func socketOf(session string) string { return filepath.Join(sessions, session, "socket") }

// inSession hands a request to the agent in a login session.
func inSession(name string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(wire.URL("")) },
		FlushInterval: -1,
		Transport: wire.Transport(func() (net.Conn, error) {
			return net.Dial("unix", socketOf(name))
		}),
	}
}

// serveSession is the main process of a login session: it runs commands in it.
func serveSession(socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := sayReady(); err != nil {
		return err
	}
	forgetSystemd()
	return wire.Server(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		exec, err := readExec(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		runCommand(w, r, exec)
	})).Serve(listener)
}

// forgetSystemd keeps from commands what systemd told the agent only.
func forgetSystemd() {
	for _, name := range []string{"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID",
		"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE"} {
		os.Unsetenv(name)
	}
}

func sayReady() error {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return fmt.Errorf("cannot tell systemd of being ready: %w", err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}
