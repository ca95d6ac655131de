/** Groups of buttons of which one is chosen: the arrow keys move between them, as in the ARIA patterns of tabs and radio groups. */

const STEPS: Readonly<Record<string, number>> = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/**
 * Makes the buttons of a group reachable by keys. Only the chosen one is in the order of the Tab key.
 *
 * @param attribute `aria-selected` for tabs, `aria-checked` for radio buttons.
 * @param choose called with the position of a button.
 */
export function choices(group: HTMLElement, attribute: string, choose: (position: number) => void): void {
  const buttons = (): HTMLElement[] => [...group.querySelectorAll<HTMLElement>("[role=tab], [role=radio]")];
  const pick = (position: number): void => {
    choose(position);
    buttons()[position]?.focus();
  };
  group.addEventListener("click", ({ target }) => {
    const position = buttons().indexOf((target as Element).closest<HTMLElement>("[role=tab], [role=radio]")!);
    if (position >= 0) pick(position);
  });
  group.addEventListener("keydown", (event) => {
    const all = buttons();
    const now = all.findIndex((button) => button.getAttribute(attribute) === "true");
    const next = event.key === "Home" ? 0 : event.key === "End" ? all.length - 1 : now + (STEPS[event.key] ?? NaN);
    if (all.length === 0 || Number.isNaN(next)) return;
    event.preventDefault();
    pick((next + all.length) % all.length);
  });
}

/** Marks the button of a position as chosen. */
export function mark(buttons: readonly HTMLElement[], attribute: string, position: number): void {
  buttons.forEach((button, i) => {
    button.setAttribute(attribute, String(i === position));
    button.tabIndex = i === position || (position < 0 && i === 0) ? 0 : -1;
  });
}
