package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	godbus "github.com/godbus/dbus/v5"
)

// The echo server is a service as one writes it with godbus, in a process of
// its own: what a call costs that does nothing.
const (
	echoCommand = "echo-server"
	echoName    = "io.github.auberge_vm.Echo"
	echoPath    = "/io/github/auberge_vm/Echo"
)

type echo struct{ answer []byte }

func (e echo) Echo([]byte) ([]byte, *godbus.Error) { return e.answer, nil }

// echoMain serves on the bus at args[0] with answers of args[1] bytes, until
// its standard input ends. It prints a line when it is on the bus.
func echoMain(args []string) error {
	if len(args) != 2 {
		return errors.New("give the address of a bus and a number of bytes")
	}
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	conn, err := godbus.Connect(args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.Export(echo{answer: bytes.Repeat([]byte{'x'}, size)}, echoPath, echoName); err != nil {
		return err
	}
	if r, err := conn.RequestName(echoName, godbus.NameFlagDoNotQueue); err != nil || r != godbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("own %s: %v, %w", echoName, r, err)
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	return nil
}
