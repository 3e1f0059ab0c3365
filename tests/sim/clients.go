package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"missingos/srv/dc"
	"missingos/storage/command"
)

const (
	attemptTimeout = 2 * time.Second
	opTimeout      = 15 * time.Second
	registers      = 2
)

// history is what clients saw.
type history struct {
	mu    sync.Mutex
	ops   []porcupine.Operation // of registers
	acked map[string]int        // appends that were acknowledged, and the place they were told
	tried map[string]bool       // all appends
}

// action is a register's operation; read is true or value is written. A read's outcome is an int.
type action struct {
	register string
	read     bool
	value    int
}

// client is one caller. Every mutation of its has one request id, however often it is tried.
type client struct {
	w    *world
	h    *history
	id   int
	rng  *rand.Rand
	seq  uint64
	last dc.NodeID // who led last
}

func (w *world) clients(ctx context.Context, n int, h *history) *sync.WaitGroup {
	var wg sync.WaitGroup
	for i := range n {
		c := &client{w: w, h: h, id: i, rng: rand.New(rand.NewPCG(w.rng.Uint64(), uint64(i)))}
		wg.Go(func() { c.run(ctx) })
	}
	return &wg
}

func (c *client) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		value := c.id*1_000_000 + i + 1
		name := strconv.Itoa(c.rng.IntN(registers))
		switch c.rng.IntN(4) {
		case 0:
			c.append(fmt.Sprintf("%d.%d", c.id, i))
		case 1:
			c.write(name, value)
		default:
			c.read(name)
		}
		if sleep(ctx, time.Duration(c.rng.IntN(60))*time.Millisecond) != nil {
			return
		}
	}
}

func now() int64 { return time.Now().UnixNano() }

func (c *client) append(line string) {
	c.h.mu.Lock()
	c.h.tried[line] = true
	c.h.mu.Unlock()
	body, err := c.mutate("append " + line)
	if err != nil {
		return
	}
	place, err := strconv.Atoi(string(body))
	if err != nil {
		panic(err)
	}
	c.h.mu.Lock()
	c.h.acked[line] = place
	c.h.mu.Unlock()
}

func (c *client) write(name string, value int) {
	call := now()
	_, err := c.mutate(fmt.Sprintf("set %s %d", name, value))
	ret := now()
	if err != nil {
		ret = 1 << 62 // it may still take effect
	}
	c.record(action{register: name, value: value}, 0, call, ret)
}

func (c *client) read(name string) {
	call := now()
	got := 0
	err := c.attempts(func(ctx context.Context, p *process) error {
		if err := p.group.ReadBarrier(ctx); err != nil {
			return err
		}
		got = p.machine.register(name)
		return nil
	})
	if err == nil { // one that failed says nothing
		c.record(action{register: name, read: true}, got, call, now())
	}
}

func (c *client) record(a action, out int, call, ret int64) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	// Calls of a client that never returned overlap its later ones, so each operation is a client of its own.
	c.h.ops = append(c.h.ops, porcupine.Operation{ClientId: len(c.h.ops), Input: a, Call: call, Output: out, Return: ret})
}

func (c *client) mutate(cmd string) (body []byte, err error) {
	c.seq++
	id := dc.RequestID{Client: uint64(c.id) + 1, Seq: c.seq, Done: c.seq, Issued: time.Now().UnixMilli()}
	if c.w.mut.noDedupe {
		id = dc.RequestID{}
	}
	err = c.attempts(func(ctx context.Context, p *process) error {
		res, err := p.group.Propose(ctx, command.Encode(id, []byte(cmd)))
		if err != nil {
			return err
		}
		body = res.Body
		return res.Err
	})
	return body, err
}

var errNoProcess = errors.New("the node is down")

// attempts tries nodes until one answers.
func (c *client) attempts(try func(context.Context, *process) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	for {
		n := c.last
		if n == 0 || c.rng.IntN(4) == 0 {
			n = dc.NodeID(c.rng.IntN(replicas) + 1)
		}
		err := errNoProcess
		if p := c.w.process(n); p != nil {
			attempt, done := context.WithTimeout(ctx, attemptTimeout)
			err = try(attempt, p)
			done()
			if p.dead.Load() {
				err = errNoProcess // the answer died with it
			}
		}
		if err == nil {
			c.last = n
			return nil
		}
		c.last = 0
		if sleep(ctx, time.Duration(10+c.rng.IntN(50))*time.Millisecond) != nil {
			return err
		}
	}
}

// checkAppends: every acknowledged line is there once, at the place that was told; every other at most once; nothing else is.
func (h *history) checkAppends(list []string) error {
	seen := map[string]int{}
	for i, line := range list {
		if at, twice := seen[line]; twice {
			return fmt.Errorf("line %s is there twice, at %d and %d", line, at, i)
		}
		if !h.tried[line] {
			return fmt.Errorf("line %s was never written", line)
		}
		seen[line] = i
	}
	for line, place := range h.acked {
		if at, ok := seen[line]; !ok {
			return fmt.Errorf("acknowledged line %s is lost", line)
		} else if at != place {
			return fmt.Errorf("line %s was acknowledged at %d and is at %d", line, place, at)
		}
	}
	return nil
}

// registerModel is a register that holds zero at first.
var registerModel = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range ops {
			name := op.Input.(action).register
			by[name] = append(by[name], op)
		}
		var all [][]porcupine.Operation
		for _, part := range by {
			all = append(all, part)
		}
		return all
	},
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		a := input.(action)
		if a.read {
			return output.(int) == state.(int), state
		}
		return true, a.value
	},
}

func (h *history) checkRegisters() error {
	switch porcupine.CheckOperationsTimeout(registerModel, h.ops, 20*time.Second) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return errors.New("the registers' history is too long to check")
	}
	return errors.New("the registers' history is not linearizable")
}
